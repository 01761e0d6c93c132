"""The exact networks, against a single Gaussian's formula, numerical integration and their own samples."""

import pytest
import torch

from diffusers_ucgm import TRANSPORTS, GaussianMixture, get_transport


MIXTURE = GaussianMixture(
    torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64),
    torch.tensor([0.2, 0.6, 0.1], dtype=torch.float64),
    torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
)


@pytest.mark.parametrize("name", ["linear", "relinear", "trigflow", "triglinear", "edm", "random"])
@pytest.mark.parametrize("prediction_type", [None, "epsilon", "sample", "v_prediction", "flow_prediction"])
def test_gaussian_equals_its_formula(name, prediction_type):
    transport = get_transport(name, prediction_type)
    gaussian = GaussianMixture(
        torch.tensor([[0.7, -0.2]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    )
    x_t = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    alpha, gamma, alpha_hat, gamma_hat = transport.coefficients(t, x_t)
    mean, variance = gaussian.means, 0.4**2
    total = alpha**2 + gamma**2 * variance
    x_hat = mean + gamma * variance / total * (x_t - gamma * mean)
    z_hat = alpha / total * (x_t - gamma * mean)
    predicted = gaussian.denoiser(transport)(x_t, transport.model_time(t))
    torch.testing.assert_close(predicted, alpha_hat * z_hat + gamma_hat * x_hat)


def test_mixture_equals_numerical_integration():
    x = torch.linspace(-4, 5, 200_001, dtype=torch.float64)
    density = sum(
        share * torch.exp(-0.5 * ((x - mean) / std) ** 2) / std
        for share, mean, std in zip(MIXTURE.probabilities, MIXTURE.means[:, 0], MIXTURE.stds, strict=True)
    )
    for alpha, gamma in ((0.3, 0.7), (0.9, 0.1), (0.05, 0.95)):
        for point in (-1.3, 0.4, 1.2):
            posterior = density * torch.exp(-0.5 * ((point - gamma * x) / alpha) ** 2)
            expected = (posterior * x).sum() / posterior.sum()
            got = MIXTURE.data_estimate(
                torch.tensor([[point]], dtype=torch.float64), torch.tensor(alpha), torch.tensor(gamma)
            )
            # float32 times are how the coefficients are given here.
            torch.testing.assert_close(got[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_samples_have_the_stated_moments():
    sample = MIXTURE.sample(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample.mean(0), MIXTURE.mean, rtol=0, atol=0.015)
    torch.testing.assert_close(sample.var(0), MIXTURE.variance, rtol=0.02, atol=0)


def test_point_mass_is_always_estimated():
    point = GaussianMixture(torch.full((1, 2, 3), 1.5), torch.zeros(1))
    x_t = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    for t in (0.001, 0.5, 1.0):
        path = TRANSPORTS["linear"]
        time = torch.full((4,), t)
        x_hat, _ = path.estimate(point.denoiser(path)(x_t, time), x_t, time)
        torch.testing.assert_close(x_hat, torch.full_like(x_t, 1.5), rtol=0, atol=2e-4)


def test_data_of_any_rank_and_the_data_end_are_finite():
    mixture = GaussianMixture(torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.2, 0.3]))
    x_t = torch.randn(5, 2, 4, 4)
    for t in (torch.tensor(0.0), torch.tensor(1.0), torch.rand(5)):
        output = mixture.denoiser(TRANSPORTS["linear"])(x_t, t, class_labels=torch.zeros(5))
        assert output.shape == x_t.shape
        assert bool(output.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 1), torch.ones(3)), "`stds` must be 2 numbers from 0 up"),
        ((torch.zeros(2, 1), torch.tensor([1.0, -1.0])), "`stds` must be 2 numbers from 0 up"),
        ((torch.zeros(2, 1), torch.ones(2), torch.tensor([1.0, 0.0])), "`weights` must be 2 positive numbers"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)
