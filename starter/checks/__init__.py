"""Checks: what `nautilus doctor` looks at. Each is one function, independent of the others, that changes nothing."""
