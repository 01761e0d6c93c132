"""TwinFlow's terms: one network as its own adversary, for models of one step.

Some samples are fakes: their data are the network's own one-step samples, and negative times mark them. On the fakes
the network learns the velocity of their path, and on the other samples that of the data's path. Where the two
velocities differ at a point, the one-step sample is moved towards the data (TwinFlow, section 3; its code):

    F(x'_t, t', t')     the velocity of the data at a renoised one-step sample x'
    F(x'_t, -t', -t')   that of the fakes
    g = clamp((F(x'_t, t', t') - F(x'_t, -t', -t')) / D(t'), -1, 1)

The one-step sample from `t = 1` to `r = 0` regresses to itself plus g. On the linear path `D = -1`, and `F* = F - g'`
with the published `g' = clamp(F(x'_t, -t', -t') - F(x'_t, t', t'), -1, 1)`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .any_step import displacement, reach
from .loss_batch import Batch
from .student_path import Denoiser, Predictor
from .targets import column
from .transports import Transport


__all__ = ["rectified_target", "signed", "with_fakes"]


def signed(network: Denoiser, is_fake: Tensor) -> Denoiser:
    """The network of two times with negative times for fakes.

    Args:
        network: The network.
        is_fake: Which rows of its calls are fakes, boolean, shape `(B,)`.
    """

    def denoise(x_t: Tensor, t: Tensor, *, target_time: Tensor, **condition: object) -> Tensor:
        sign = 1.0 - 2.0 * is_fake.to(t)
        return network(x_t, sign * t, target_time=sign * target_time, **condition)

    return denoise


@torch.no_grad()
def with_fakes(batch: Batch, predict: Predictor, network: Denoiser, noise: Tensor, start: float) -> Batch:
    """The batch with the network's own samples of one step as the data of fakes.

    Args:
        batch: A batch with fakes.
        predict: The way to call the network.
        network: The network.
        noise: The noise that these samples are made from, shape `(B, C, ...)`.
        start: The canonical time of noise: 1, or the last at which the prediction tells data from noise.
    """
    transport, rows = predict.transport, batch.rows.faked
    z = rows.take(noise)
    t, r = z.new_full(z.shape[:1], start), z.new_zeros(z.shape[:1])
    x_t = transport.sample(torch.zeros_like(z), z, t)
    output = predict(network, x_t, t, rows.take_condition(batch.condition), r)
    own = rows.put(_jump(transport, output, x_t, t, r), len(noise))
    assert batch.drawn.fake is not None
    x = torch.where(column(batch.drawn.fake, own), own, batch.x)
    return replace(batch, x=x, x_t=transport.sample(x, batch.drawn.noise, batch.drawn.t))


@torch.no_grad()
def rectified_target(
    batch: Batch,
    predict: Predictor,
    network: Denoiser,
    student: Tensor,
    renoising: tuple[Tensor, Tensor],
    start: float,
) -> Tensor:
    """The target of one-step samples that are moved towards the data; for other samples it is the student's answer.

    Args:
        batch: A batch with fakes.
        predict: The way to call the network.
        network: The network, asked twice.
        student: The student's F, shape `(B, C, ...)`.
        renoising: Times t', shape `(B,)`, and noise, shape `(B, C, ...)`.
        start: The canonical time of noise.

    Returns:
        F*, shape `(B, C, ...)`.
    """
    transport, rows, (t, r) = predict.transport, batch.rows.rectified, (batch.drawn.t, batch.drawn.r)
    assert r is not None
    output, x_t, t, r, time, noise = (rows.take(each) for each in (student, batch.x_t, t, r, *renoising))
    condition = rows.take_condition(batch.condition)
    point = transport.sample(_jump(transport, output, x_t, t, r), noise, time)
    of_data = predict(network, point, time, condition, time)
    of_fakes = predict(signed(network, torch.ones_like(time, dtype=torch.bool)), point, time, condition, time)
    move = ((of_data - of_fakes) / column(transport.determinant(time), point)).clamp(-1.0, 1.0)
    # Rows of other samples may have no way at all: their quotient is left out.
    target = rows.put(output + move / column(reach(transport, t, r), point), len(student))
    return torch.where(column(batch.drawn.rectified(start), student), target, student)


def _jump(transport: Transport, output: Tensor, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
    return x_t + displacement(transport, transport.estimate(output, x_t, t), t, r)
