"""Beta schedules and whole runs of a scheduler, for the tests of sampling."""

import torch


CHAINS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01 + 0.0002 * i for i in range(200)], "num_train_timesteps": 200},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


def network(x):
    """Something that is not linear in the sample, and tame enough not to magnify what float32 rounds."""
    return 0.8 * torch.sin(x)


def run(scheduler, times=None, steps=None, seed=0, output=network, **given):
    """A whole run; what a pipeline does, without the pipeline."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps, **given) if times is None else scheduler.set_timesteps(timesteps=times)
    # diffusers' flow-matching schedulers have neither of these, since they would do nothing.
    sample = torch.randn(2, 3, 8, 8, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
    for t in scheduler.timesteps:
        model_input = scaled(sample, t)
        sample = scheduler.step(output(model_input), t, sample, generator=generator, return_dict=False)[0]
    return sample
