"""Every way to compress vectors behind one interface, and by name."""
