"""Models of diffusers through our solvers: the same samples as through its own schedulers, the same inputs reach the model."""

import copy
import json

import pytest
import torch

from carom.processes import EDM, Diffusion, Discrete, FlowMatching, retime
from carom.scores import from_diffusers
from carom.solvers import DDIM, DPMSolverPP, Euler, discrete, grid_from_diffusers, sample

diffusers = pytest.importorskip("diffusers")
# its own use of NumPy's and torch's older names
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS = 5  # divides 1,000: for others their DDIM steps to levels that are not on its own grid
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
KINDS = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}


def tiny_unet(**settings):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
        | {"block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
        | {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
        | settings
    ).eval()


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


def noise(*shape):
    return torch.randn(*(shape or (2, 1, 8, 8)), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def theirs(unet, scheduler, x, labels=None):
    """Their loop, after set_timesteps."""
    for i, t in enumerate(scheduler.timesteps):
        label = t if labels is None else labels[i]
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(seen, label).sample, t, x).prev_sample
    return x


def scheduler_of(name: str, betas: str, **config):
    """A scheduler with this table, also where only another scheduler knows its name."""
    if betas in ("sigmoid", "laplace"):
        config["trained_betas"] = diffusers.DDPMScheduler(beta_schedule=betas).betas.tolist()
    else:
        config["beta_schedule"] = betas
    return getattr(diffusers, name)(**config)


def relative(ours, theirs) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def close(ours, theirs, tolerance=1e-5) -> None:
    error = relative(ours, theirs)
    assert error <= tolerance, f"{error:.2e} relative"


# ----------------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_equals_theirs(unet, kind, betas) -> None:
    scheduler = scheduler_of(
        "DDIMScheduler",
        betas,
        prediction_type=kind,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(STEPS)
    process, score = from_diffusers(unet, scheduler)
    times = grid_from_diffusers(scheduler, process)
    assert torch.equal(times, discrete(process, STEPS, "trailing"))
    # float32 over 5 steps; both start where the scale may be 5e-5, and neither loses digits there
    close(sample(process, score, DDIM(), times, shape=2, initial=noise()).x, theirs(unet, scheduler, noise()))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver_pp_2m_equals_theirs(unet, kind, betas) -> None:
    scheduler = scheduler_of("DPMSolverMultistepScheduler", betas, prediction_type=kind, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    process, score = from_diffusers(unet, scheduler)
    times = grid_from_diffusers(scheduler, process)
    close(sample(process, score, DPMSolverPP(2), times, shape=2, initial=noise()).x, theirs(unet, scheduler, noise()))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("kind", KINDS)
def test_euler_in_sigma_equals_theirs(unet, kind, betas) -> None:
    """Theirs keeps x = x0 + σε in float32: from the σ of 2e4 of a cosine table it has a resolution of 1e-3, so it starts lower there."""
    spacing = "leading" if betas == "squaredcos_cap_v2" else "trailing"
    scheduler = scheduler_of("EulerDiscreteScheduler", betas, prediction_type=kind, timestep_spacing=spacing)
    scheduler.set_timesteps(STEPS)
    process, score = from_diffusers(unet, scheduler)
    # their float32 sigmas exceed the table's end by rounding
    ve = Diffusion(process.domain, EDM(process.schedule.sigma_min, 1.01 * process.schedule.sigma_max))
    x = noise() * scheduler.init_noise_sigma
    ours = sample(ve, retime(score, process, ve), Euler(), grid_from_diffusers(scheduler, ve), shape=2, initial=x).x
    close(ours, theirs(unet, scheduler, x))


@torch.no_grad()
def euler_in_float64(unet, scheduler, x):
    """The loop of their EulerDiscreteScheduler in float64, into which it cannot be put itself: x0 + σε → D + (σ'/σ)(x − D)."""
    x, sigmas, kind = x.double(), scheduler.sigmas.double(), scheduler.config.prediction_type
    for sigma, end, t in zip(sigmas, sigmas[1:], scheduler.timesteps, strict=False):
        scale = (1 + sigma**2).rsqrt()
        answer = unet(scale * x, t).sample
        data = {"sample": answer, "v_prediction": scale**2 * x - scale * sigma * answer}[kind]
        x = data + (end / sigma) * (x - data)
    return x


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_from_a_scale_of_5e5_their_euler_is_limited_by_its_float32_and_ddim_is_not(unet, kind) -> None:
    """The first σ of a cosine table is 2e4. Euler, ours and theirs, adds up x = x0 + σε there, a unit in whose last place is 2e-3 (at
    noise prediction x stays as large). DDIM in the same coordinates is the same step as a mean of x and D, with nothing to cancel."""
    scheduler = scheduler_of(
        "EulerDiscreteScheduler", "squaredcos_cap_v2", prediction_type=kind, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(STEPS)
    process, score = from_diffusers(unet, scheduler)
    ve = Diffusion(process.domain, EDM(process.schedule.sigma_min, 1.01 * process.schedule.sigma_max))
    times, x = grid_from_diffusers(scheduler, ve), noise() * scheduler.init_noise_sigma
    fine = copy.deepcopy(unet).double()
    exact = euler_in_float64(fine, scheduler, x)
    precise = retime(from_diffusers(fine, scheduler)[1], process, ve)
    # the same arithmetic: x of 6e4 in float64 has 7e-12, and the label of a level that is found from its σ moves the network
    close(sample(ve, precise, Euler(), times, shape=2, initial=x.double()).x, exact, 1e-8)
    ddim = sample(ve, retime(score, process, ve), DDIM(), times, shape=2, initial=x).x
    close(ddim, exact)
    assert relative(theirs(unet, scheduler, x), exact) > 1e-4  # or the test of parity above may start there, too


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_equals_theirs(unet, shift) -> None:
    """Euler on the velocity is DDIM; both start from pure noise, where the scale is 0."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(STEPS)
    process, score = from_diffusers(unet, scheduler)
    assert isinstance(process.schedule, FlowMatching) and score.predicts == "velocity"
    times = grid_from_diffusers(scheduler, process=None)
    assert float(times[0]) == 1.0
    close(sample(process, score, DDIM(), times, shape=2, initial=noise()).x, theirs(unet, scheduler, noise()))


def test_dpm_solver_pp_on_a_flow_equals_theirs(unet) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(STEPS)
    process, score = from_diffusers(unet, scheduler)
    # it starts at 0.999, in float32 a little above our end
    times = grid_from_diffusers(scheduler).clamp(max=process.schedule.t_max)
    ours = sample(process, score, DPMSolverPP(2), times, shape=2, initial=noise()).x
    # they cut the model's label to an integer; here both see 1000 t
    close(ours, theirs(unet, scheduler, noise(), 1000 * scheduler.sigmas))


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_zero_terminal_snr_starts_from_pure_noise(unet, kind) -> None:
    scheduler = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True,
        prediction_type=kind,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(STEPS)
    process, score = from_diffusers(unet, scheduler)
    times = grid_from_diffusers(scheduler, process)
    assert float(times[0]) == 1.0 and float(process.schedule.scale(1.0)) == 0
    close(sample(process, score, DDIM(), times, shape=2, initial=noise()).x, theirs(unet, scheduler, noise()))


def test_a_label_off_by_one_would_be_seen(unet) -> None:
    """What the tolerances above are worth: the network answers to its label."""
    _, score = from_diffusers(unet, diffusers.DDIMScheduler(prediction_type="sample"))
    x = noise()
    with torch.no_grad():
        right, wrong = (score.prediction(x, torch.tensor(t))[0] for t in (0.5, 0.501))
    assert float((right - wrong).abs().max() / right.abs().max()) > 1e-4
    with torch.no_grad():
        close(right, unet(x, 499).sample, 1e-7)


# ----------------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("betas", [*BETAS, "exp"])
def test_a_mere_config_gives_the_table_in_float64(unet, betas) -> None:
    cls = diffusers.HeunDiscreteScheduler if betas == "exp" else diffusers.DDPMScheduler
    try:
        scheduler = cls(beta_schedule=betas, beta_start=1e-4, beta_end=0.02)
    except TypeError:
        scheduler = None  # some releases break this name in the constructor
    config = {
        "num_train_timesteps": 1000,
        "beta_schedule": betas,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    }
    process, score = from_diffusers(unet, config)
    assert score.predicts == "noise" and process.domain.event_shape == (1, 8, 8)
    assert torch.equal(process.schedule.alphas_cumprod, Discrete.from_betas(betas).alphas_cumprod)
    if scheduler is not None:
        # a thousand float32 factors
        torch.testing.assert_close(
            process.schedule.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=1e-6
        )


def test_tables_by_their_betas_and_rescaled_to_zero_snr(unet) -> None:
    betas = diffusers.DDPMScheduler().betas
    config = {"trained_betas": betas.tolist(), "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    process, _ = from_diffusers(unet, config)
    expected = diffusers.DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod.double()
    torch.testing.assert_close(process.schedule.alphas_cumprod, expected, rtol=2e-4, atol=1e-6)
    assert float(process.schedule.alphas_cumprod[-1]) == 0
    # those that step in σ write 2⁻²⁴ for it, more than the level before has
    process, _ = from_diffusers(
        unet, diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    )
    assert float(process.schedule.alphas_cumprod[-1]) == 0


def test_the_ends_of_published_tables(unet) -> None:
    config = {"num_train_timesteps": 1000, "prediction_type": "epsilon"}
    for betas, start, end, sigma_max in (("linear", 1e-4, 0.02, 157.41), ("scaled_linear", 0.00085, 0.012, 14.6146)):
        process, _ = from_diffusers(unet, config | {"beta_schedule": betas, "beta_start": start, "beta_end": end})
        assert process.schedule.sigma_max == pytest.approx(sigma_max, rel=4e-5)


def test_schedulers_configs_and_dicts_say_the_same(unet) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    saved = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
    tables = []
    for given in (scheduler, scheduler.config, saved):
        process, score = from_diffusers(unet, given)
        assert score.predicts == "data"
        tables.append(process.schedule.alphas_cumprod)
    # a config without its class is computed in float64
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-4, atol=1e-6)
    assert torch.equal(tables[0], tables[2])


# ------------------------------------------------------------------------------------------------------------------------ models


def test_class_labels_reach_the_model_per_sample() -> None:
    unet = tiny_unet(num_class_embeds=4)
    process, score = from_diffusers(unet, diffusers.DDPMScheduler(prediction_type="sample"))
    x, y = noise(3, 1, 8, 8), torch.tensor([0, 3, 1])
    with torch.no_grad():
        expected = unet(x, 299, class_labels=y).sample
        data, _ = score.prediction(x, torch.tensor(0.3), class_labels=y)
        alone, _ = score.prediction(x[1], torch.tensor(0.3), class_labels=y[1])
    close(data, expected, 1e-7)
    close(alone, expected[1], 1e-5)
    times = discrete(process, 3)
    ours = sample(process, score, DDIM(), times, shape=3, initial=x, condition={"class_labels": y}).x
    assert ours.shape == x.shape and bool(ours.isfinite().all())
    with pytest.raises(TypeError, match="class_label"):
        score(x, 0.3, class_label=y)


def test_text_and_added_conditions_reach_a_conditional_unet() -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 2 + 5,
    ).eval()
    scheduler = diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    process, score = from_diffusers(unet, scheduler)
    assert process.domain.event_shape == (4, 8, 8)
    x = noise(2, 3, 4, 8, 8)
    condition = {
        "encoder_hidden_states": noise(2, 3, 7, 6),
        "added_cond_kwargs": {"text_embeds": noise(2, 3, 5), "time_ids": noise(2, 3, 2)},
    }
    with torch.no_grad():
        flat = {"encoder_hidden_states": condition["encoder_hidden_states"].flatten(0, 1)}
        flat["added_cond_kwargs"] = {k: v.flatten(0, 1) for k, v in condition["added_cond_kwargs"].items()}
        expected = unet(x.flatten(0, 1), 99, **flat).sample.reshape(x.shape)
        close(score.prediction(x, 0.1, **condition)[1], expected, 1e-7)


def test_a_dit_with_learned_variance() -> None:
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=3, out_channels=6, num_layers=1, sample_size=4,
        num_embeds_ada_norm=10, norm_num_groups=1,
    ).eval()  # fmt: skip
    _, score = from_diffusers(model, diffusers.DDPMScheduler(variance_type="learned_range"))
    x, y = noise(2, 3, 4, 4), torch.tensor([7, 2])
    with torch.no_grad():
        expected = model(x, torch.tensor([499.0, 499.0]), class_labels=y).sample
        close(score.prediction(x, 0.5, class_labels=y)[1], expected[:, :3], 1e-7)
        close(score.variance_output(x, 0.5, class_labels=y), expected[:, 3:], 1e-7)


def test_a_model_computes_in_its_own_dtype(unet) -> None:
    half = tiny_unet().to(torch.bfloat16)
    config = diffusers.DDPMScheduler(prediction_type="v_prediction")
    x = noise()
    coarse, fine = (from_diffusers(model, config)[1] for model in (half, unet))
    with torch.no_grad():
        assert coarse(x.double(), 0.5).dtype == torch.float64
        # bfloat16 has 8 bits; the labels keep theirs
        close(coarse.prediction(x, 0.5)[0], fine.prediction(x, 0.5)[0], 0.05)


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y,)], ids=["tensor", "tuple"])
def test_models_may_answer_with_a_tensor_or_a_tuple(wrap) -> None:
    config = diffusers.DDPMScheduler()
    _, score = from_diffusers(lambda x, label: wrap(2 * x), config, event_shape=(1, 8, 8))
    torch.testing.assert_close(score.prediction(noise(), 0.5)[1], 2 * noise())


# ----------------------------------------------------------------------------------------------------------------------- folders


def test_saved_pipelines_and_models_are_read(unet, tmp_path) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipeline")
    unet.save_pretrained(tmp_path / "model")
    expected_process, expected = from_diffusers(unet, scheduler)
    folder = tmp_path / "pipeline"
    for arguments in ((folder,), (str(tmp_path / "model"), folder), (unet, folder / "scheduler"), (folder, scheduler)):
        process, score = from_diffusers(*arguments)
        assert torch.equal(process.schedule.alphas_cumprod, expected_process.schedule.alphas_cumprod)
        with torch.no_grad():
            assert torch.equal(score(noise(), 0.4), expected(noise(), 0.4))
    with pytest.raises(TypeError, match="scheduler: got none"):
        from_diffusers(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"expected it to hold model_index\.json or config\.json"):
        from_diffusers(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioPipeline", "vocoder": ["x", "Y"]}))
    with pytest.raises(ValueError, match="expected one with a unet or a transformer"):
        from_diffusers(tmp_path)


def test_pickled_weights_are_not_read(unet, tmp_path) -> None:
    unet.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match="safetensors"):
        from_diffusers(tmp_path, diffusers.DDPMScheduler())


# ---------------------------------------------------------------------------------------------------------------------- refusals

PLAIN = {"num_train_timesteps": 10, "beta_schedule": "linear", "beta_start": 0.01, "beta_end": 0.2}
REFUSALS = [
    (PLAIN, "config without prediction_type, expected it to state prediction_type, or its _class_name"),
    ({"prediction_type": "epsilon"}, "config without num_train_timesteps"),
    (PLAIN | {"prediction_type": "x0"}, "got prediction_type 'x0', expected one of epsilon, sample"),
    (
        PLAIN | {"prediction_type": "epsilon", "rescale_betas_zero_snr": True},
        "'epsilon' with a β table that ends at zero SNR.*rescale_betas_zero_snr=False",
    ),
    ({"prediction_type": "epsilon", "trained_betas": [0.1, 0.5, 1.0]}, "ends at zero SNR"),
    (PLAIN | {"prediction_type": "v_prediction", "timestep_type": "continuous"}, "use from_k_diffusion"),
    (PLAIN | {"prediction_type": "flow_prediction"}, "expected use_flow_sigmas=True"),
    ({"shift": 1.0, "num_train_timesteps": 1000, "invert_sigmas": True}, "time runs from noise to data"),
    ({"_class_name": "NoSuchScheduler"}, "got the class 'NoSuchScheduler', which the installed diffusers"),
]


@pytest.mark.parametrize(("config", "message"), REFUSALS, ids=[m for _, m in REFUSALS])
def test_configs_that_do_not_fit_are_refused(unet, config, message) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(unet, config)


def test_noise_prediction_is_refused_for_schedulers_that_hide_the_zero(unet) -> None:
    with pytest.raises(ValueError, match="zero SNR"):
        from_diffusers(unet, diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True))


def test_what_is_no_model_or_scheduler_is_refused(unet) -> None:
    with pytest.raises(TypeError, match="scheduler: got int, expected a scheduler of diffusers"):
        from_diffusers(unet, 3)
    with pytest.raises(ValueError, match=r"got EDMEulerScheduler, expected one with a β table or a flow; .* from_edm"):
        from_diffusers(unet, diffusers.EDMEulerScheduler())
    with pytest.raises(TypeError, match="model: got int"):
        from_diffusers(3, diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match=r"event_shape: function does not say it .* pass event_shape="):
        from_diffusers(lambda x, t: x, diffusers.DDPMScheduler())
    process, _ = from_diffusers(lambda x, t: x, diffusers.DDPMScheduler(), event_shape=(5,))
    assert process.domain.event_shape == (5,)
