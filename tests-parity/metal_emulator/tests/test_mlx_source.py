"""Source that mx.fast.metal_kernel generates compiles and runs, with MLX's own prelude in front."""

import re
from pathlib import Path

import numpy as np
import pytest

import metal_emulator
from metal_emulator import EmulatorFault, FaultKind

mx = pytest.importorskip("mlx.core")

BODY = """
    uint elem = thread_position_in_grid.x;
    T t = inp[elem];
    out[elem] = T(metal::exp(t) + w[inp_shape[0] - 1]);"""


@pytest.fixture
def generated(tmp_path, capfd):
    """Text of a kernel from float or bfloat, printed while MLX records the call; it has no Metal to run it on here."""

    def generate(body, dtype):
        kernel = mx.fast.metal_kernel(name="exp_plus", input_names=["inp", "w"], output_names=["out"], source=body)

        def call(a, w):
            return kernel(
                inputs=[a, w],
                template=[("T", dtype)],
                grid=(a.size, 1, 1),
                threadgroup=(32, 1, 1),
                output_shapes=[a.shape],
                output_dtypes=[a.dtype],
                verbose=True,
            )[0]

        mx.export_function(str(tmp_path / "call.mlxfn"), call, mx.zeros((64,), dtype), mx.zeros((64,), dtype))
        text = re.search(r"```\n(.*?)```", capfd.readouterr().out, re.DOTALL)
        assert text is not None
        return '#include "mlx/backend/metal/kernels/utils.h"\n' + text[1]

    return generate


@pytest.fixture(scope="module")
def include_dir():
    folder = Path(mx.__file__).parent / "include"
    if not (folder / "mlx/backend/metal/kernels/utils.h").exists():
        pytest.skip("this MLX wheel carries no Metal headers")
    return folder


def test_generated_kernel(generated, include_dir):
    library = metal_emulator.compile_source(generated(BODY, mx.float32), include_dirs=[include_dir])
    (name,) = library.names
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    out = np.zeros(64, np.float32)
    shape = np.array([64], np.int32)
    library.kernel(name).launch([x, shape, x, out], 64, 32)
    np.testing.assert_allclose(out, np.exp(x) + x[-1], rtol=1e-6)


def test_bfloat_goes_through_the_prelude(generated, include_dir):
    library = metal_emulator.compile_source(generated(BODY, mx.bfloat16), include_dirs=[include_dir])
    (name,) = library.names
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    bits = np.array(mx.array(x).astype(mx.bfloat16).view(mx.uint16))
    out = np.zeros(64, np.uint16)
    library.kernel(name).launch([bits, np.array([64], np.int32), bits, out], 64, 32)
    got = np.array(mx.array(out).view(mx.bfloat16).astype(mx.float32))
    np.testing.assert_allclose(got, np.exp(x) + x[-1], rtol=0.02)


def test_a_planted_index_error_is_found(generated, include_dir):
    source = generated(BODY.replace("inp_shape[0] - 1", "inp_shape[0]"), mx.float32)
    library = metal_emulator.compile_source(source, include_dirs=[include_dir])
    (name,) = library.names
    x = np.zeros(64, np.float32)
    with pytest.raises(EmulatorFault) as caught:
        library.kernel(name).launch([x, np.array([64], np.int32), x.copy(), x.copy()], 64, 32)
    assert caught.value.report.kinds() == {FaultKind.OUT_OF_BOUNDS}
