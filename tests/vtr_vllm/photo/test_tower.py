"""The tower sees what its ONNX graph sees. Fetches 90 MB; run by ``make photo-check``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from vtr_vllm.photo.parts import FOLDER, SIDE, TOWER, fetch
from vtr_vllm.photo.tower import LAYERS, read_tower

pytestmark = pytest.mark.origins
LAST = f"/backbone/encoder/layer.{LAYERS - 1}/Add_1_output_0"
"""The graph's name of the states behind the last layer that is kept."""


def test_the_tower_sees_what_the_graph_sees() -> None:
    import onnx
    import onnxruntime

    path = fetch(TOWER, FOLDER)
    graph = onnx.load(path)
    graph.graph.output.append(
        onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    pixels = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    (wanted,) = session.run([LAST], {"input_image": pixels})
    config, weights = read_tower(path)
    tower = InternVLVisionModel(config).eval()
    tower.load_state_dict(weights)
    with torch.no_grad():
        got = tower(torch.from_numpy(pixels)).last_hidden_state.numpy()
    normed = torch.nn.functional.layer_norm(torch.from_numpy(wanted), wanted.shape[-1:], eps=1e-6)
    np.testing.assert_allclose(got, normed.numpy(), rtol=1e-3, atol=1e-4)
