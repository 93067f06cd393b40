"""Files in object storage and on web servers, by the URLs that fsspec knows."""
