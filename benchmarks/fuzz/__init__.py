"""Hostile input: malformed, oversized, replayed, forged and out-of-order messages, in process and through real doors.

What holds: everything is either accepted as a valid object or refused by the documented error with one clear line; it
takes bounded time, and what was refused has changed nothing.
"""
