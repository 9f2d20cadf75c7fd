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
