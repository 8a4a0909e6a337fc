import pytest

from support.tiny_models import tiny_checkpoint
from triton_rerank_build import ParityError, RepositoryError, export
from triton_rerank_build.cli.main import main
from triton_rerank_build.parity.published import PUBLISHED, TOLERANCE
from triton_rerank_build.repository.verify import verify_published


def test_another_checkpoint_is_refused(tiny_exports):
    with pytest.raises(RepositoryError, match=r"are those of BAAI/bge-reranker-v2-m3; .* holds tiny"):
        verify_published(tiny_exports("xlm-roberta", "fp32").repository)


@pytest.mark.slow
def test_other_weights_under_that_name_are_found_out(tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "bge-reranker-v2-m3", "xlm-roberta", max_position_embeddings=514)
    export(str(checkpoint), repository=tmp_path / "repository")
    with pytest.raises(ParityError, match=f"tolerance {TOLERANCE}") as caught:
        verify_published(tmp_path / "repository")
    for _, document, published in PUBLISHED:
        assert f"{published:9.4f}" in str(caught.value)
        assert document[:40] in str(caught.value)
    assert main(["verify", "--repository", str(tmp_path / "repository"), "--golden"]) == 1
    assert "differ from the published ones by" in capsys.readouterr().err


def test_the_published_scores_are_within_reach_of_their_own_sigmoid():
    # The model card also prints the normalized scores of the second and third pair.
    from triton_rerank.ranking.relevance import sigmoid

    assert sigmoid(PUBLISHED[1][2]) == pytest.approx(0.00027803, abs=1e-8)
    assert sigmoid(PUBLISHED[2][2]) == pytest.approx(0.99484038, abs=1e-8)
