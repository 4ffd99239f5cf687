"""What only the real Hub can show; run with IWM_TEST_REAL_HUB=1 and a network."""

import os

import pytest

from iwm.errors import UnknownModelError, WeightsUnavailableError
from iwm.hub_client import HubOptions, ask
from iwm.loading import load

pytestmark = [
    pytest.mark.real_hub,
    pytest.mark.skipif(
        os.environ.get("IWM_TEST_REAL_HUB") != "1",
        reason="asks the real Hugging Face Hub; set IWM_TEST_REAL_HUB=1 to run it",
    ),
]


def test_the_hub_reports_a_digest_for_every_known_file():
    report = ask("facebook/ijepa_vith14_1k", "main", HubOptions())
    assert len(report.commit) == 40
    algorithms = {name: digest.algorithm for name, digest in report.files.items()}
    assert algorithms["config.json"] == "git"
    assert algorithms["README.md"] == "git"


def test_a_repository_that_does_not_exist():
    with pytest.raises(UnknownModelError, match="There is no"):
        load("iwm-no-such-organisation/iwm-no-such-model")


def test_a_repository_of_another_library_is_refused_before_its_weights_are_fetched(tmp_path):
    with pytest.raises((ValueError, WeightsUnavailableError)):
        load("facebook/ijepa_vith14_1k", cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
