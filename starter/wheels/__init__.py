"""The two small wheels, made from the same files as this application: `nautilus-agent` and `nautilus-platform`."""
