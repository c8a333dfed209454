"""One picture per domain: a reflected path, the heat kernel at four noise levels, the score between the walls."""

import math
import sys
from pathlib import Path

from carom.domains import Ball, Hypercube, Orthant, Polytope, Product, RegularSimplex, Simplex, Torus
from carom.validation import domain_picture

inf = math.inf
domains = {
    "hypercube": Hypercube((2,)),
    "open_box": Hypercube((2,), [0.0, 0.0], [1.0, inf]),
    "orthant": Orthant((2,)),
    "torus": Torus((2,)),
    "simplex": Simplex(3),
    "regular_simplex": RegularSimplex(3),
    "ball": Ball(2),
    "polytope": Polytope([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]], [1, 1, 0, 0, 1.4]),
    "product": Product(Simplex(2), Torus((1,))),
}
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "gallery")
for name, domain in domains.items():
    print(f"{domain!r:60} -> {domain_picture(domain, folder / f'{name}.png')}")
