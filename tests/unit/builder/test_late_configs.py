"""The config files of late interaction agree with each other and with the reranker's tensors."""

import pytest

from support.configs import assert_arrows_join_equals, read_config, tensors
from triton_rerank_build.late_interaction.repository import LATE, TEMPLATES
from triton_rerank_build.repository.layout import template_repository


@pytest.fixture
def configs():
    return {name: read_config(TEMPLATES / name / "config.pbtxt") for name in LATE.models}


def test_names_and_batch_sizes_agree(configs):
    assert {name: config.name for name, config in configs.items()} == {name: name for name in LATE.models}
    reranker = read_config(template_repository() / "reranker/config.pbtxt")
    assert {config.max_batch_size for config in configs.values()} == {reranker.max_batch_size}


def test_clients_see_the_tensors_of_the_reranker(configs):
    reranker = read_config(template_repository() / "reranker/config.pbtxt")
    ensemble = configs["late_interaction"]
    assert tensors(ensemble.input) == tensors(reranker.input)
    assert tensors(ensemble.output) == tensors(reranker.output)


def test_every_arrow_joins_equal_names_types_and_dims(configs):
    assert_arrows_join_equals(configs["late_interaction"], configs)


def test_the_scorer_computes_what_the_ensemble_says_and_asks_a_model_that_is_there(configs):
    scorer = {name: value.string_value for name, value in configs["late_scorer"].parameters.items()}
    assert scorer["logit_scale"] == configs["late_interaction"].parameters["logit_scale"].string_value
    assert scorer["encoder_model"] in configs


def test_runtimes_of_the_encoder_differ_only_where_they_may(configs):
    pair = [configs["late_encoder"], read_config(TEMPLATES / "late_encoder/configs/cpu.pbtxt")]
    ragged = [{tensor.allow_ragged_batch for tensor in config.input} for config in pair]
    assert ragged == [{False}, {True}]
    for config in pair:
        for field in ("backend", "instance_group", "parameters", "model_warmup"):
            config.ClearField(field)
        for tensor in config.input:
            tensor.ClearField("allow_ragged_batch")
    assert pair[0] == pair[1]


def test_no_queue_policy_stands_where_it_would_cost_half_a_second(configs):
    for name in ("late_scorer", "late_encoder"):
        assert configs[name].HasField("dynamic_batching")
        assert not configs[name].dynamic_batching.HasField("default_queue_policy")
        assert [group.count for group in configs[name].instance_group] == [1]
