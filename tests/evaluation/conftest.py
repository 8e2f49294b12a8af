import pytest


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def run(model, save_run, tmp_path_factory):
    """The folder of a run whose weights are random."""
    return save_run(model, tmp_path_factory.mktemp("runs") / "vgs+")
