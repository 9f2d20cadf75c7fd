import shutil
from pathlib import Path

import jaxtyping
import matplotlib
import pytest
from matplotlib import pyplot as plt

matplotlib.use("agg")


@pytest.fixture
def plain_python():
    """The companion as a reader runs it, without the shapes being checked first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def figure():
    """A fresh matplotlib figure, closed afterwards, with matplotlib's settings put back."""
    with matplotlib.rc_context():
        yield plt.figure()
        plt.close("all")


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    installed = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        if installed is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip(
                "no Chromium: install Debian's package chromium, or run `playwright install "
                "chromium`"
            )
        chromium = driver.chromium.launch(
            executable_path=installed, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()
