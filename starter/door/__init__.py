"""The door: what platforms and agents outside reach over HTTP; an adapter with no rules of its own."""
