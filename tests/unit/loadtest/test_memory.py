"""The verdict of the memory benchmark on samples, and its plot."""

from benchmarks.memory import draw, grown, growth_mb, measured


def samples(sizes):
    """Samples of one process."""
    return [{"at_s": 10.0 * n, "calls": 2.0 * n, "model": float(size)} for n, size in enumerate(sizes)]


def test_growth_compares_the_last_quarter_with_the_second():
    warming_up = samples([*range(100, 200, 10), *[200] * 30])
    assert growth_mb(warming_up, "model") == (200, 200)
    assert growth_mb(samples(range(100, 140)), "model") == (114.5, 134.5)
    assert growth_mb(samples([7]), "model") == (7, 7)


def test_noise_is_no_growth():
    assert not grown(100, 109)  # less than 10 MB
    assert not grown(1000, 1049)  # less than 5 %
    assert grown(1000, 1051)
    assert grown(10, 21)
    assert not grown(1000, 500)


def test_the_plot_has_a_curve_for_each_process(tmp_path):
    both = [{**sample, "/dev/shm": 12.0} for sample in samples([1, 2, 3])]
    assert measured(both) == ["model", "/dev/shm"]
    draw(both, tmp_path / "memory.svg")
    drawn = (tmp_path / "memory.svg").read_text()
    assert all(name in drawn for name in measured(both))
