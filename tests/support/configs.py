"""Reading and comparing Triton config files."""

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def read_config(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def tensors(items):
    return {item.name: (item.data_type, list(item.dims)) for item in items}


def assert_arrows_join_equals(ensemble, models):
    """Every arrow of the ensemble joins tensors of equal name, type and dims, and each input has one."""
    known = tensors(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        assert set(step.input_map) == {item.name for item in model.input}
        for inside, outside in step.input_map.items():
            assert inside == outside
            assert tensors(model.input)[inside] == known[outside]
        for inside, outside in step.output_map.items():
            assert inside == outside
            known[outside] = tensors(model.output)[inside]
    assert tensors(ensemble.output).items() <= known.items()
