"""Simulate a star and its planets for some years, and check the path against what physics conserves.

Newton's equations in astronomical units, years and solar masses, integrated with the Dormand-Prince method of order 8
(Hairer, Norsett & Wanner 1993; `scipy.integrate.solve_ivp`). No closed form exists for three bodies or more; energy and
angular momentum are constant for any number, so a path that loses them is an invalid result.
"""

from collections.abc import Mapping
from math import log10, pi
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy import linalg, random  # numpy loads them on first use, which would be in each task
from pydantic import Field

from schema.messages.base import Value

from . import InvalidResult, TaskPayload, TaskResult, number, rng

TOLERANCE = 1e-9  # of the integrator, relative; unless the operator declares `physics_simulation.tolerance`
G = 4 * pi**2  # by Kepler's third law, in these units
SPACING = 1.7  # of neighbouring orbits, about that of the solar system: stable for far longer than a task simulates
DIGITS = 12  # of energy kept is as good as double precision gets

Array = np.ndarray[Any, np.dtype[np.float64]]


class PlanetarySystem(TaskPayload):
    """A star with planets, drawn from the seed, and the relative drift that its path may have at most."""

    planets: Annotated[int, Field(ge=1, le=8)]
    years: Annotated[float, Field(gt=0, le=1000)]
    allowed_drift: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]


class PhysicsSimulation:
    name: ClassVar[str] = "physics_simulation"
    Payload: ClassVar[type[PlanetarySystem]] = PlanetarySystem

    def prepare(self, _cache: Path) -> None:
        """Load scipy, where tasks of this type run and nowhere else."""
        import scipy.integrate  # noqa: F401

    def run(self, payload: PlanetarySystem, parameters: Mapping[str, Value]) -> TaskResult:
        """Follow the planets for the payload's years. Raises InvalidResult for a path that drifts too far."""
        from scipy.integrate import solve_ivp

        tolerance = number(parameters, "physics_simulation.tolerance", TOLERANCE)
        masses, state = starting_point(payload)
        path = solve_ivp(
            lambda _, now: motion(masses, now),
            (0.0, payload.years),
            state,
            method="DOP853",
            rtol=tolerance,
            atol=tolerance * 1e-3,
        )
        if not path.success:
            raise InvalidResult(f"the integration stopped at year {path.t[-1]:g} of {payload.years:g}: {path.message}")
        before = conserved(masses, state)
        after = conserved(masses, path.y[:, -1])
        drift = float(np.max(np.abs(after - before) / np.abs(before)))
        if not drift <= payload.allowed_drift:  # true of NaN too
            raise InvalidResult(f"expected energy and angular momentum within {payload.allowed_drift:g}, but {drift:g}")
        kept_digits = -log10(max(drift, 1e-16))  # no drift at all is as good as the least that a float can show
        return TaskResult(
            summary=f"{payload.planets} planets, {payload.years:g} years; what is conserved drifts by {drift:.1g}.",
            quality=round(min(1.0, kept_digits / DIGITS), 4),
            details={"drift": drift, "steps": len(path.t) - 1, "end": path.y[:, -1].tolist()},
        )

    def sample(self, unit_id: str) -> PlanetarySystem:
        draw = rng(self.name, unit_id)
        years = round(draw.uniform(12, 24), 1)
        return PlanetarySystem(planets=draw.randint(3, 5), years=years, allowed_drift=1e-5, seed=draw.getrandbits(63))


def starting_point(system: PlanetarySystem) -> tuple[Array, Array]:
    """Masses, and positions and velocities in one vector: nearly circular orbits around a star of one solar mass."""
    generator = random.default_rng(system.seed)
    masses = np.concatenate([[1.0], 10 ** generator.uniform(-6, -4, system.planets)])
    radii = SPACING ** np.arange(system.planets)
    angles = generator.uniform(0, 2 * pi, system.planets)
    speeds = np.sqrt(G / radii) * generator.uniform(0.97, 1.03, system.planets)
    positions, velocities = np.zeros((2, system.planets + 1, 3))
    positions[1:] = radii[:, None] * np.stack(
        [np.cos(angles), np.sin(angles), generator.normal(0, 0.02, len(angles))], 1
    )
    velocities[1:] = speeds[:, None] * np.stack([-np.sin(angles), np.cos(angles), np.zeros_like(angles)], 1)
    return masses, np.concatenate([positions.ravel(), velocities.ravel()])


def motion(masses: Array, state: Array) -> Array:
    """The derivative of the state under the gravity of every body on every other."""
    positions, velocities = state.reshape(2, -1, 3)
    separations = positions[None, :] - positions[:, None]
    cubed = np.einsum("ijk,ijk->ij", separations, separations) ** 1.5
    np.fill_diagonal(cubed, 1.0)  # a body is at distance zero from itself, and does not pull itself
    pull = G * np.einsum("ijk,j->ik", separations / cubed[:, :, None], masses)
    return np.concatenate([velocities.ravel(), pull.ravel()])


def conserved(masses: Array, state: Array) -> Array:
    """Total energy, and the length of the total angular momentum."""
    positions, velocities = state.reshape(2, -1, 3)
    distances = linalg.norm(positions[None, :] - positions[:, None], axis=2)
    i, j = np.triu_indices(len(masses), 1)
    energy = (masses * (velocities**2).sum(1)).sum() / 2 - (G * masses[i] * masses[j] / distances[i, j]).sum()
    angular_momentum = linalg.norm((masses[:, None] * np.cross(positions, velocities)).sum(0))
    return np.array([energy, angular_momentum])
