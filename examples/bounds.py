"""What score matching bounds: KL divergences of the reverse SDE and of the flow of a score that is off, term by term, in closed form."""

from carom.domains import Euclidean
from carom.processes import VP, Diffusion
from carom.scores import GaussianMixtureScore
from carom.validation import problems
from carom.validation.bounds import GaussianStudy, flow_study

line = Diffusion(Euclidean((1,)), VP())
for name, study in {  # data N(½, ¼) throughout
    "a wrong score, prior N(0, 1)": GaussianStudy(line),
    "the same, self-consistent": GaussianStudy(line, prior_law="model"),
    "the exact score, prior N(0, 1)": GaussianStudy(line, model=(0.5, 0.25)),
}.items():
    print(name)
    print(f"  SDE: KL {study.kl_sde:.9f} = D_Fisher {study.fisher:.9f} + prior {study.prior:.2e} - gap {study.gap:.2e}")
    print(
        f"  flow: KL {study.kl_ode:.9f} = D_Fisher {study.fisher:.9f} + prior {study.prior:.2e} + D_diff {study.d_diff:.2e}"
    )
    assert abs(study.fisher + study.prior - study.gap - study.kl_sde) < 1e-12
    assert abs(study.fisher + study.prior + study.d_diff - study.kl_ode) < 1e-12

# of a mixture and any score, by sums over nodes in place of closed forms
problem = problems.mixture()
for name, score in (
    ("exact", problem.score),
    ("one Gaussian", GaussianMixtureScore(problem.process, [1.0], [0.1], [0.9])),
):
    study = flow_study(problem, score)
    print(
        f"{name}: NLL {study.nll:.6f} = entropy {study.entropy:.6f} + prior {study.prior:.1e} + D_ODE {study.d_ode:+.6f};",
        end=" ",
    )
    print(f"D_Fisher {study.fisher:.6f}, error of the Jacobian {study.jacobian:.6f}")
