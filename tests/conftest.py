import matplotlib
import pytest
from matplotlib import pyplot as plt

matplotlib.use("agg")


@pytest.fixture
def figure():
    """A fresh matplotlib figure, closed afterwards, with matplotlib's settings put back."""
    with matplotlib.rc_context():
        yield plt.figure()
        plt.close("all")
