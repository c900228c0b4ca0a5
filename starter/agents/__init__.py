"""Built-in agents: six investigators, each with a method of its own; they use the client, as any other agent does."""

from .agent import Watcher, run_agents

__all__ = ["Watcher", "run_agents"]
