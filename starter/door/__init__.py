"""The door: how platforms and agents come in that reach neither the database nor Temporal.

An adapter over the resolver, the recorder and the client, with no rules of its own. What comes through it is untrusted:
every request has a key with scopes, a rate and a size.
"""
