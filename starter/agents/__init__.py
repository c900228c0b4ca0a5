"""Built-in agents: six investigators with methods of their own, who enter by the client's door like everybody else."""

from .agent import Watcher, run_agents

__all__ = ["Watcher", "run_agents"]
