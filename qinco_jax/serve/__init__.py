"""The service: an index that is searched over HTTP, many requests at a time.

Reads only. Needs Starlette and Uvicorn (the extra `serve`).
"""
