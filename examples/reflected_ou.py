"""A reflected Ornstein–Uhlenbeck process, no network in sight: your own drift and diffusion, forward in time, NumPy in and out."""

import math

import numpy as np
import torch

from carom.domains import Orthant
from carom.processes import SDE
from carom.solvers import ReflectedEulerMaruyama, WhiteNoise, solve

rate, mean, noise, horizon, paths = 1.0, 0.5, 0.8, 6.0, 100_000
ou = SDE(drift=lambda x, t: rate * (mean - x), diffusion=noise, domain=Orthant((1,)))
times = np.linspace(0.0, horizon, 601)
x0 = np.full((paths, 1), 2.0)
solution = solve(ou, x0, times, ReflectedEulerMaruyama(), noise=WhiteNoise(0), save=[1.0, 3.0, 6.0]).numpy()

# the stationary law is the normal N(mean, noise²/2·rate) cut off at 0
std = noise / math.sqrt(2 * rate)
alpha = -mean / std
density, tail = math.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(alpha / math.sqrt(2))
for t, states in zip(solution.times, solution.trajectory, strict=True):
    print(f"t = {t:g}: mean {states.mean():.4f}, smallest {states.min():.2e}")
print(f"stationary mean {mean + std * density / tail:.4f}; {type(solution.x).__name__}, {solution.nfe} evaluations")

# local time: reflected Brownian motion from 0 has E[L_t] = E|W_t| = sqrt(2t/π)
brownian = SDE(drift=lambda x, t: torch.zeros_like(x), diffusion=1.0, domain=Orthant((1,)))
start = np.zeros((paths, 1))
push = solve(brownian, start, np.linspace(0, 2, 101), ReflectedEulerMaruyama(), noise=WhiteNoise(1)).local_time
error = float(push.std()) / math.sqrt(paths)
print(f"local time at t = 2: {float(push.mean()):.4f} ± {error:.4f}, closed form {math.sqrt(4 / math.pi):.4f}")
