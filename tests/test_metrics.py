"""Frame metrics and FVD against numbers of other libraries, and FVD's network on a stand-in of the right shape."""

import numpy as np
import pytest
import torch

from world_model import WeightsError
from world_model.metrics import psnr, ssim
from world_model.metrics.fvd import FILE, I3D, Statistics, frechet_distance

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the published I3D is TorchScript


def images(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images (3, 48, 40) and noisy versions of them: waves, so that every machine makes the same."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    waves = [torch.sin(x / 5 + c) * torch.cos(y / (7 + k)) for k in range(2) for c in range(3)]
    true = 0.5 + 0.4 * torch.stack(waves).view(2, 3, 48, 40)
    rough = torch.sin(131 * x + 57 * y * y) * torch.cos(17 * x * y)  # as good as noise
    return (true + noise * rough).clamp(0, 1), true


# Made with scikit-image 0.26, from `a, b = (p.permute(0, 2, 3, 1).double().numpy() for p in images(noise))`:
#   skimage.metrics.peak_signal_noise_ratio(b[i], a[i], data_range=1)
#   skimage.metrics.structural_similarity(b[i], a[i], data_range=1, channel_axis=2, gaussian_weights=True,
#                                         sigma=1.5, use_sample_covariance=False)
GOLDEN = {0.02: ([39.83592, 39.83592], [0.988569, 0.986739]), 0.2: ([19.93121, 19.90798], [0.502756, 0.470259])}


@pytest.mark.parametrize("noise", GOLDEN)
def test_psnr_and_ssim_are_those_of_scikit_image(noise):
    predicted, true = images(noise)
    ratios, similarities = GOLDEN[noise]
    np.testing.assert_allclose(psnr(predicted, true), ratios, atol=1e-3)
    np.testing.assert_allclose(ssim(predicted, true), similarities, atol=1e-4)


def test_equal_images_and_leading_dimensions():
    predicted, true = images(0.1)
    assert (ssim(true, true) - 1).abs().max() < 1e-5
    clips = ssim(predicted.view(1, 2, 3, 48, 40), true.view(1, 2, 3, 48, 40))
    torch.testing.assert_close(clips, ssim(predicted, true)[None])


def statistics(features: np.ndarray) -> Statistics:
    """Added in two batches."""
    found = Statistics()
    for part in np.array_split(features, 2):
        found.add(torch.from_numpy(part))
    return found


def test_frechet_distance_of_known_normal_distributions():
    """Diagonal covariances: the distance is the squared difference of means and of standard deviations."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(500, 6))
    features = (features - features.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(features.T, bias=True))).T
    scale, shift = np.array([1, 2, 3, 0.5, 1, 0.1]), np.array([0, 1, 0, -2, 0, 0.5])
    other = features * scale + shift
    expected = (shift**2).sum() + ((scale - 1) ** 2).sum()
    assert frechet_distance(statistics(features), statistics(other)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics(other), statistics(other)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_that_of_the_matrix_root():
    """Against the textbook formula, with fewer clips than features as well."""
    linalg = pytest.importorskip("scipy.linalg")
    generator = np.random.default_rng(1)
    for clips in (200, 12):
        a, b = (generator.normal(size=(clips, 16)) @ generator.normal(size=(16, 16)) + shift for shift in (0, 0.5))
        cov_a, cov_b = (np.cov(x.T, bias=True) for x in (a, b))
        root = np.real(linalg.sqrtm(cov_a @ cov_b + 1e-9 * np.eye(16)))
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
        assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-3)


class StandIn(torch.nn.Module):
    """Called as the real file is; its features are means of the scaled images' rows, 400 of them."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert return_features
        assert x.dim() == 5
        if rescale:
            x = 2 * x / 255 - 1
        if resize:
            x = torch.nn.functional.interpolate(x.flatten(0, 1), [200, x.shape[4]]).view(
                x.shape[0], x.shape[1], -1, 200, x.shape[4]
            )
        return torch.cat([x.mean([1, 2, 4]), x[:, 0].mean([1, 3])], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("i3d")
    torch.jit.script(StandIn()).save(str(folder / FILE))
    return folder


def test_i3d_sees_clips_as_the_file_wants_them(folder):
    i3d = I3D(folder, torch.device("cpu"))
    clips = torch.rand(20, 10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    features = i3d(clips)
    assert features.shape == (20, 400)
    torch.testing.assert_close(features[:, :200].mean(1), (2 * clips - 1).mean((1, 2, 3, 4)))  # all of -1 to 1 is used
    with pytest.raises(ValueError, match="9 frames or more"):
        i3d(clips[:, :8])


def test_missing_or_wrong_i3d_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"i3d_torchscript\.pt is missing"):
        I3D(tmp_path, torch.device("cpu"))
    (tmp_path / FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="must be I3D as TorchScript"):
        I3D(tmp_path, torch.device("cpu"))
    torch.jit.script(torch.nn.Linear(3, 3)).save(str(tmp_path / FILE))
    with pytest.raises(WeightsError, match="is not the I3D that is expected"):
        I3D(tmp_path, torch.device("cpu"))(torch.rand(1, 9, 3, 8, 8))
