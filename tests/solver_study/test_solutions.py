"""Many-step solutions: exact, cached by what they depend on, and compared in medians and shares."""

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from exact_pipeline import exact_pipeline

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.solver_study import solutions
from diffusers_ucgm.solver_study.solutions import (
    distances,
    median_interval,
    reference_solutions,
    solution_paths,
    solution_scheduler,
    summary,
)


CONDITIONS, SEEDS = [0, 1, 2, 0], [5, 6, 7, 8]


def solved(pipe, num_calls=40, **options):
    return reference_solutions(pipe, CONDITIONS, SEEDS, num_calls=num_calls, progress=False, **options)


def test_solutions_converge_at_second_order_and_samples_at_more_steps_come_closer():
    pipe = exact_pipeline()
    best = solved(pipe, 2000)
    errors = [float(distances(solved(pipe, calls), best).median()) for calls in (80, 160, 320)]
    assert 3.0 < errors[0] / errors[1] < 6.0  # 4 where the order is 2
    assert 3.0 < errors[1] / errors[2] < 6.0
    drawn = [
        distances(generate(pipe, CONDITIONS, SEEDS, num_inference_steps=steps), best).median() for steps in (5, 20)
    ]
    assert errors[0] < drawn[1] < drawn[0]


def test_settings_of_the_sampler_make_no_difference_and_the_pipeline_is_left_alone():
    one, other = exact_pipeline(), exact_pipeline(UCGMScheduler(extrapolation_ratio="auto", time_warp=(2.0, 1.0, 1.0)))
    assert torch.equal(solved(one), solved(other))
    assert other.scheduler.config.extrapolation_ratio == "auto"


@pytest.mark.parametrize(
    "stock",
    [
        DDIMScheduler(),
        DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        UCGMScheduler(prediction_type="epsilon", stochasticity=1.0),
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
)
@pytest.mark.parametrize("num_calls", [100, 1000])
def test_every_kind_of_model_has_a_schedule_of_solutions(stock, num_calls):
    scheduler = solution_scheduler(stock.config)
    scheduler.set_timesteps(num_calls)
    assert num_calls - 1 <= len(scheduler.canonical_times) <= num_calls
    assert scheduler.canonical_times[0] > 0.99
    assert scheduler.canonical_times[-1] < 3.0 / num_calls * scheduler.config.shift
    if scheduler.config.round_timesteps:
        assert scheduler.timesteps.dtype == torch.long
        assert len(set(scheduler.timesteps.tolist())) == num_calls // 2


def test_cache_is_read_and_what_is_missing_or_torn_is_made_again(tmp_path, monkeypatch):
    pipe = exact_pipeline()
    expected = solved(pipe)
    assert torch.equal(solved(pipe, cache=tmp_path, batch_size=2), expected)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    drawn = []
    monkeypatch.setattr(
        solutions, "generate", lambda *args, **options: drawn.append(args[2]) or generate(*args, **options)
    )
    assert torch.equal(solved(pipe, cache=tmp_path, batch_size=2), expected)
    assert drawn == []
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:50])
    assert torch.equal(solved(pipe, cache=tmp_path, batch_size=2), expected)
    assert sorted(drawn) == [[5, 6], [7, 8]]
    assert sorted(tmp_path.iterdir()) == files


def test_a_stopped_run_keeps_what_it_has(tmp_path, monkeypatch):
    pipe, calls = exact_pipeline(), []

    def stopping(*args, **options):
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(solutions, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        solved(pipe, cache=tmp_path, batch_size=1)
    solved(pipe, cache=tmp_path, batch_size=1)
    assert calls == [[5], [6], [6], [7], [8]]


def test_summary_tells_the_median_and_who_ended_elsewhere():
    targets = torch.stack([torch.full((2, 2), float(value)) for value in (0, 4, 8, 12)])
    samples = targets.clone()
    samples[:3] += 0.5
    samples[3] = targets[0]
    found = summary(distances(samples, targets), targets)
    assert found.median == pytest.approx(0.5)
    assert found.rms == pytest.approx(((3 * 0.25 + 144) / 4) ** 0.5)
    assert found.share_elsewhere == 0.25


def test_wrong_input_is_told():
    with pytest.raises(ValueError, match="`seeds` must be one for each of 2 conditions, got 1"):
        reference_solutions(exact_pipeline(), [0, 1], [0])
    with pytest.raises(ValueError, match=r"`samples` must have the shape of `solutions`, \(2, 3\), got \(2, 2\)"):
        distances(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`solutions` must be at least 2, got 1"):
        summary(torch.zeros(1), torch.zeros(1, 3))


def test_points_of_a_path_lead_to_its_end():
    pipe, seeds = exact_pipeline(), [3, 4, 5]
    times = [0.9, 0.55, 0.2]
    paths = solution_paths(pipe, [0, 1, 2], seeds, times, num_calls=600, progress=False)
    assert paths.shape == (3, 4, 2, 2, 2)
    ends = reference_solutions(pipe, [0, 1, 2], seeds, num_calls=600, progress=False)
    torch.testing.assert_close(paths[:, -1], ends, rtol=0, atol=0)
    for place, t in enumerate(times):
        scheduler = solution_scheduler(pipe.scheduler.config)
        scheduler.set_timesteps(timesteps=torch.linspace(1000 * t, 2.0, 300))
        sample = paths[:, place]
        for step in scheduler.timesteps:
            output = pipe.transformer(sample, step.expand(3))[0]
            sample = scheduler.step(output, step, sample, return_dict=False)[0]
        torch.testing.assert_close(sample, ends, rtol=0, atol=2e-3)


def test_paths_are_kept_apart_by_their_times_and_do_not_depend_on_the_order(tmp_path):
    pipe = exact_pipeline()
    options = {"num_calls": 60, "progress": False, "cache": tmp_path}
    first = solution_paths(pipe, [0, 1], [1, 2], [0.7, 0.3], **options)
    turned = solution_paths(pipe, [0, 1], [1, 2], [0.3, 0.7], **options)
    torch.testing.assert_close(turned[:, [1, 0, 2]], first)
    assert len(list(tmp_path.glob("solutions-*"))) == 2
    pipe.transformer.forward = None  # read, not made again
    torch.testing.assert_close(solution_paths(pipe, [0, 1], [1, 2], [0.7, 0.3], **options), first)


def test_points_before_the_first_call_and_after_the_last_are_on_its_line():
    pipe = exact_pipeline()
    paths = solution_paths(pipe, [0], [1], [1.0, 1e-5], num_calls=40, progress=False)
    noise = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(paths[:, 0], noise, rtol=0, atol=5e-2)
    torch.testing.assert_close(paths[:, 1], paths[:, 2], rtol=0, atol=1e-2)


def test_points_lie_between_the_corrected_samples_of_the_calls_around_them():
    pipe, calls = exact_pipeline(), 10
    scheduler, seen = solution_scheduler(pipe.scheduler.config), []
    generate(pipe, [0], [1], num_inference_steps=calls, scheduler=scheduler, on_step=seen.append)
    # The second call at a time goes on from the sample that the first one corrected.
    times, steps = scheduler.canonical_times[2::2], seen[2::2]
    data = [step.estimate for step in steps]
    noise = [(step.before - (1.0 - t) * step.estimate) / t for t, step in zip(times, steps, strict=True)]
    between = [(t + s) / 2.0 for t, s in zip(times[:-1], times[1:], strict=True)]
    expected = [
        (1.0 - t) * (data[i] + data[i + 1]) / 2.0 + t * (noise[i] + noise[i + 1]) / 2.0 for i, t in enumerate(between)
    ]
    paths = solution_paths(pipe, [0], [1], [*times, *between], num_calls=calls, progress=False)
    samples = torch.stack([*(step.before for step in steps), *expected, seen[-1].sample], dim=1)
    torch.testing.assert_close(paths, samples, rtol=0, atol=1e-5)


def test_the_interval_of_a_median_holds_it_in_about_95_of_100_draws():
    generator = torch.Generator().manual_seed(1)
    draws = torch.rand(200, 65, generator=generator)
    intervals = [median_interval(draw) for draw in draws]
    covered = sum(low <= 0.5 <= high for low, high in intervals)
    assert 180 <= covered <= 198
    assert median_interval(draws[0]) == intervals[0]
    width = [high - low for low, high in (median_interval(draws.flatten()[:number]) for number in (100, 10_000))]
    # It shrinks with the root of the number of seeds.
    assert width[0] / width[1] == pytest.approx(10.0, rel=0.5)


def test_the_interval_of_equal_distances_is_a_point():
    assert median_interval(torch.full((3,), 0.25)) == (0.25, 0.25)
