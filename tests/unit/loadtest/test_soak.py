"""The verdict of the soak benchmark on samples, and its plot."""

from benchmarks.soak import draw, grown, growth


def samples(sizes):
    """Samples of one process."""
    return [
        {"at_s": 10.0 * n, "calls": 2.0 * n}
        | {figure: {"model": float(size)} for figure in ("memory_mb", "descriptors", "threads")}
        for n, size in enumerate(sizes)
    ]


def test_growth_compares_the_last_quarter_with_the_second():
    warming_up = samples([*range(100, 200, 10), *[200] * 30])
    assert growth(warming_up, "memory_mb", "model") == (200, 200)
    assert growth(samples(range(100, 140)), "threads", "model") == (114.5, 134.5)
    assert growth(samples([7]), "descriptors", "model") == (7, 7)


def test_noise_is_no_growth():
    assert not grown("memory_mb", 100, 109)  # less than 10 MB
    assert not grown("memory_mb", 1000, 1049)  # less than 5 %
    assert grown("memory_mb", 1000, 1051)
    assert grown("memory_mb", 10, 21)
    assert not grown("memory_mb", 1000, 500)
    assert not grown("descriptors", 30, 34)
    assert grown("descriptors", 30, 35)
    assert grown("threads", 30, 35)


def test_the_plot_has_a_panel_for_each_figure_and_a_curve_for_each_process(tmp_path):
    both = samples([1, 2, 3])
    for sample in both:
        sample["memory_mb"]["/dev/shm"] = 12.0
    draw(both, tmp_path / "soak.svg")
    drawn = (tmp_path / "soak.svg").read_text()
    assert all(words in drawn for words in ("model", "/dev/shm", "MB", "open descriptors", "threads"))
