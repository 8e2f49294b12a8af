"""Which moments of a sound and regions of a picture make up their similarity, and whether they are right."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import TINY_MODEL, TINY_VISION
from PIL import Image

from vgsplus.audio import SAMPLE_RATE
from vgsplus.errors import AudioError, CorpusError, VgsplusError
from vgsplus.evaluation.pointing.localise import WINDOW, region_shares, window_shares, window_times
from vgsplus.interop.pretrained import PretrainedModel, PublishedPretrainedModel
from vgsplus.models.config import PixelConfig
from vgsplus.models.vision_transformer import VISION_TRANSFORMERS
from vgsplus.regions.pixel_grid import PIXEL_GRID

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def make(cls=PretrainedModel, **changes):
    torch.manual_seed(0)
    model = cls(dataclasses.replace(TINY_MODEL, **{"feature_dim": 224} | changes)).eval()
    model.about = {"regions": PIXEL_GRID}
    return model


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def only_region(region, squash):
    """An embedding of the features of one region alone, by a linear map or a squashed one."""
    weight = torch.randn(224, 8, generator=torch.Generator().manual_seed(0))

    def embed(features, boxes):
        values = features[:, region] @ weight
        return values.tanh() if squash else values + boxes[:, 0].sum(-1, keepdim=True)

    return embed


def moments(waveforms, _num_samples):
    """An embedding that is the energy of eight parts of a sound."""
    return torch.stack([part.square().sum(-1) for part in waveforms.tensor_split(8, dim=-1)], dim=-1)


@pytest.mark.parametrize("squash", [False, True])
def test_a_model_that_sees_one_region_and_hears_one_moment_points_to_both(squash, monkeypatch):
    model = make()
    monkeypatch.setattr(model.image, "forward", only_region(17, squash))
    monkeypatch.setattr(model, "embed_speech", lambda *given: moments(*given) * (torch.arange(8) == 2))
    found = model.localise(noise(4), picture())
    others = [region for region in range(36) if region != 17]
    assert found.scores[:, others].abs().max() == found.region_scores[others].abs().max() == 0
    assert found.region_scores[17] != 0
    heard = (found.times > 1 - WINDOW / 2) & (found.times < 1.5 + WINDOW / 2)
    assert found.scores[~heard].abs().max() < 1e-4 < found.scores[heard, 17].abs().min()


def test_shares_of_a_model_that_adds_up_regions_and_moments_sum_to_its_embedding(monkeypatch):
    model = make()
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        model.image, "forward", lambda features, boxes: features.sum(1) @ weight + boxes.sum((1, 2))[:, None]
    )
    features, boxes = torch.randn(1, 5, 4), torch.rand(1, 5, 4)
    whole, shares, found = region_shares(model, (features, boxes))
    mean = features.mean(1, keepdim=True).expand_as(features)
    torch.testing.assert_close(shares.sum(0), whole - model.image(mean, boxes)[0], **CLOSE)
    assert torch.equal(found, boxes[0])
    monkeypatch.setattr(model, "embed_speech", moments)
    signal = noise(3.6)
    complete, silenced = window_shares(model, signal, np.arange(12) * WINDOW + WINDOW / 2)
    torch.testing.assert_close(silenced.sum(0), complete, **CLOSE)  # windows side by side


@pytest.mark.parametrize("cls", [PretrainedModel, PublishedPretrainedModel])
def test_scores_are_differences_of_similarities(cls):
    model = make(cls, padding=cls.padding)
    sound, image = noise(1.3), picture()
    found = model.localise(sound, image, step=0.1)
    assert found.scores.shape == (13, 36)
    assert found.boxes.shape == (36, 4)
    speech, shown = model.encode_speech(sound), model.encode_image(image)
    assert found.similarity == pytest.approx(model.similarity(speech, shown).item(), rel=1e-4)
    normalised = (sound - sound.mean()) / sound.std()
    for moment in (0, 6, 12):
        silent = normalised.copy()
        centre = float(found.times[moment]) * SAMPLE_RATE
        silent[max(0, round(centre - 2400)) : round(centre + 2400)] = 0
        with torch.no_grad():
            other = model.embed_speech(torch.from_numpy(silent)[None], torch.tensor([len(silent)]))
        torch.testing.assert_close(found.time_scores[moment], ((speech - other) @ shown.T)[0, 0], **CLOSE)
    assert found.times.tolist() == pytest.approx([0.05 + 0.1 * n for n in range(13)])


def test_scores_do_not_depend_on_how_many_moments_are_computed_together(monkeypatch):
    model, sound = make().train(), noise(0.9)
    together = model.localise(sound, picture(), step=0.1)
    monkeypatch.setattr("vgsplus.evaluation.pointing.localise.BATCH_SAMPLES", 1)
    alone = model.localise(sound, picture(), step=0.1)
    torch.testing.assert_close(together.scores, alone.scores, **CLOSE)
    assert model.training
    assert not together.scores.requires_grad


def test_a_sound_has_moments_at_its_start_and_end_however_short_it_is():
    assert window_times(SAMPLE_RATE, 0.25).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert window_times(800, 0.25).tolist() == [0.025]
    assert make().localise(noise(0.026), picture()).scores.shape == (1, 36)


def test_a_model_that_reads_pixels_has_its_patches_as_regions(monkeypatch):
    monkeypatch.setitem(VISION_TRANSFORMERS, "tiny", TINY_VISION)
    found = make(image=PixelConfig(backbone="tiny", weights=None)).localise(noise(0.5), picture())
    assert found.scores.shape[1] == len(found.boxes) == 9


def test_what_cannot_be_localised_is_told_before_the_model_runs(monkeypatch, tmp_path):
    with pytest.raises(VgsplusError, match="without grounding modules"):
        make(grounded=False).localise(noise(1), picture())
    monkeypatch.setattr(PretrainedModel, "embed_speech", lambda *_: pytest.fail("the model ran"))
    model = make()
    with pytest.raises(AudioError, match="one frame needs 400"):
        model.localise(noise(0.01), picture())
    with pytest.raises(CorpusError, match=r"a\.png: there is no such picture"):
        model.localise(noise(1), tmp_path / "a.png")
    with pytest.raises(VgsplusError, match="must be positive, not 0 s"):
        model.localise(noise(1), picture(), step=0)
    model.about = {}
    with pytest.raises(VgsplusError, match="Pass regions="):
        model.localise(noise(1), picture())
