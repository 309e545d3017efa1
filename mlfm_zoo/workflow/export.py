"""Export a network to a file for an inference engine, after comparing outputs.

ONNX, OpenVINO and AOTInductor get the graph of `torch.export`; TorchScript compiles the network's own code.
"""

import copy
import io
import logging
import random
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.data import create_transform
from torch.export import Dim

from .._extras import require_extra
from .._files import written_whole
from .._folding import fuse_trunk
from .._timm import config_of, model_name
from ..data.folders import data_config, image_mode
from ..data.images import open_image
from .build import first_line
from .predict import find_images

__all__ = [
    'CALIBRATED', 'CHECKED', 'ENDINGS', 'Check', 'ExportedNetwork', 'export_network', 'input_size', 'quantize',
    'read_photos', 'require_format', 'write_graph',
]

# Each format's ending. OpenVINO keeps weights in a second file beside FILE.xml, FILE.bin.
ENDINGS = {'onnx': '.onnx', 'openvino': '.xml', 'torchscript': '.pt', 'aoti': '.pt2'}

# Libraries of the extra `export` that a format needs; nncf quantizes for OpenVINO.
LIBRARIES: Dict[str, Tuple[str, ...]] = {'onnx': ('onnx', 'onnxscript', 'onnxruntime'), 'openvino': ('openvino',)}

# Dimensions of an image batch that may differ from call to call.
DYNAMIC: Dict[str, Tuple[int, ...]] = {'none': (), 'batch': (0,), 'all': (0, 2, 3)}

# Largest numbers of photographs for the calibration of int8 and for the check of a file.
CALIBRATED, CHECKED = 256, 32

# Largest errors: of a logit of a float32 file, as a share of the largest logit; and of the logits of an int8 file, as a
# share of their norm, where a few hundredths keep a network's accuracy.
TOLERANCE, INT8_TOLERANCE = 1e-4, 0.5

# Images of a batch when int8 is calibrated, unless the file's own batch is fixed.
BATCH = 16


class Check(NamedTuple):
    """Outputs of a file, compared with the network's.

    Attributes:
        randoms: Random images.
        photos: Photographs.
        difference: Largest difference of a logit, as a share of the largest logit.
        error: Norm of the differences of the photographs' logits, as a share of the norm of these logits, after each
            image's mean logit is subtracted. Without photographs, random images are used.
        same: Number of these images with the same top-1 class.
    """
    randoms: int
    photos: int
    difference: float
    error: float
    same: int


class ExportedNetwork(nn.Module):
    """An exported file as a module, for `workflow.evaluate` and timm's loaders.

    Args:
        file: A file that `export_network` wrote.
        network: The exported network, from which the module takes number of classes and pretrained config.
        batch_size: Batch size of the file if it is fixed: smaller batches are then padded and larger ones split.

    Raises:
        RuntimeError: A library is missing.
    """

    def __init__(self, file: Union[str, Path], network: nn.Module, batch_size: Optional[int] = None):
        super().__init__()
        self.num_classes, self.pretrained_cfg = getattr(network, 'num_classes', 0), config_of(network)
        self.batch_size = batch_size
        self.run = _open_file(Path(file))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.run(batch) for batch in _batches(x, self.batch_size or len(x))])[:len(x)]


def require_format(form: str, file: Union[str, Path], int8: bool = False) -> None:
    """Check format, file name and libraries before a network is built.

    Args:
        form: Format, a key of `ENDINGS`.
        file: File to write.
        int8: Whether it is to be quantized.

    Raises:
        ValueError: The file cannot be written under this name, or the format has no int8.
        RuntimeError: A library is missing.

    Examples:
        >>> require_format('torchscript', 'network.onnx')
        Traceback (most recent call last):
        ValueError: network.onnx cannot be written: name a file that ends with .pt, in an existing folder.
    """
    file = Path(file)
    if file.suffix != ENDINGS[form] or not file.parent.is_dir():
        raise ValueError(
            f'{file} cannot be written: name a file that ends with {ENDINGS[form]}, in an existing folder.')
    if int8 and form not in LIBRARIES:
        raise ValueError(f'{form} has no int8 here, expected onnx or openvino: name one of them, or leave out int8.')
    for library in LIBRARIES.get(form, ()) + (('nncf',) if int8 and form == 'openvino' else ()):
        require_extra(library, 'export', f'Exporting to {form}')


def export_network(
        model: nn.Module,
        file: Union[str, Path],
        form: str,
        img_size: Optional[int] = None,
        batch_size: int = 1,
        dynamic: str = 'none',
        fuse: bool = False,
        calibration: Optional[torch.Tensor] = None,
        photos: Optional[torch.Tensor] = None,
) -> Check:
    """Export a network to a file for an inference engine, after comparing outputs.

    Args:
        model: A timm model on the CPU, which is set to eval mode. Its file takes images prepared by the model's own
            transform, and returns logits.
        file: File to write, whole or not at all, with the format's ending, see `ENDINGS`.
        form: Format: 'onnx', 'openvino', 'torchscript' or 'aoti', AOTInductor's package of machine code for this CPU.
        img_size: Image size in pixels, instead of the model's.
        batch_size: Batch size, unless it is dynamic.
        dynamic: Dynamic dimensions: 'none', 'batch', or 'all' for batch, height and width. For TorchScript all are.
        fuse: Whether to fold norms into convolutions first, see `fuse_trunk`.
        calibration: Images (N, C, H, W) for the calibration of int8; the file is float32 if None.
        photos: Images (N, C, H, W) to compare outputs on, in addition to random ones.

    Returns:
        The comparison.

    Raises:
        ValueError: The format, the file's name or the image size is wrong, or the network cannot be exported like this.
        RuntimeError: A library is missing, or the outputs differ. Nothing is then written.

    Examples:
        >>> model = timm.create_model('test_mlfm_resnet', pretrained=True)
        >>> check = export_network(model, 'network.pt', 'torchscript')
        >>> ExportedNetwork('network.pt', model)(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    file = Path(file)
    require_format(form, file, calibration is not None)
    model.eval()
    size = input_size(model, img_size)
    images = _random_images(size, batch_size, dynamic) + ([] if photos is None else [photos])
    expected = [_logits(model, batch) for batch in images]
    network = fuse_trunk(copy.deepcopy(model)) if fuse else model
    fixed_batch = batch_size if dynamic == 'none' and form != 'torchscript' else None
    with tempfile.TemporaryDirectory(prefix='mlfm_zoo_export_') as folder:
        made = Path(folder, f'network{ENDINGS[form]}')
        write_graph(network, made, form, size, batch_size, dynamic)
        if calibration is not None:
            source, made = made, made.with_stem('int8')
            quantize(source, made, list(_batches(calibration, fixed_batch or BATCH)))
        exported = ExportedNetwork(made, model, fixed_batch)
        check = _compare(expected, [exported(batch) for batch in images], 0 if photos is None else len(photos))
        error, limit, of = check.difference, TOLERANCE, 'largest logit'
        if calibration is not None:
            error, limit, of = check.error, INT8_TOLERANCE, 'norm of the logits'
        if not error <= limit:
            raise RuntimeError(
                f'The {form} file of {model_name(model)} is wrong by {error:.2g} of the {of}, expected at most '
                f'{limit}, and was not written: export to another format, or calibrate int8 on other images.')
        for ending in ('.bin', '.xml') if form == 'openvino' else (file.suffix,):  # weights before their graph
            with written_whole(file.with_suffix(ending)) as unfinished:
                shutil.copyfile(made.with_suffix(ending), unfinished)
    return check


def input_size(model: nn.Module, img_size: Optional[int] = None) -> Tuple[int, int, int]:
    """Return the input size of a model.

    Args:
        model: A timm model.
        img_size: Image size in pixels, instead of its config's.

    Returns:
        Channels, height and width.

    Examples:
        >>> input_size(timm.create_model('test_mlfm_resnet'))
        (3, 64, 64)
    """
    channels, height, width = config_of(model).get('input_size', (3, 224, 224))
    return channels, img_size or height, img_size or width


def read_photos(folder: Union[str, Path], model: nn.Module, count: int, img_size: Optional[int] = None) -> torch.Tensor:
    """Read photographs, prepared by a model's own transform.

    Args:
        folder: Folder of images, with or without class folders.
        model: A timm model.
        count: Largest number of images, drawn at random with a fixed seed.
        img_size: Image size in pixels, instead of the model's.

    Returns:
        Images (N, C, H, W), normalized.

    Raises:
        FileNotFoundError: The folder holds no images.
        ValueError: An image cannot be decoded, or the model does not take images.

    Examples:
        >>> read_photos('digits/val', timm.create_model('test_mlfm_resnet'), count=8).shape
        torch.Size([8, 3, 64, 64])
    """
    files = find_images([folder])
    config = data_config(model, img_size)
    transform, mode = create_transform(**config), image_mode(config)
    files = random.Random(0).sample(files, min(count, len(files)))
    return torch.stack([transform(open_image(file, mode)) for file in files])


def write_graph(
        model: nn.Module,
        file: Path,
        form: str,
        size: Tuple[int, int, int],
        batch_size: int = 1,
        dynamic: str = 'none',
) -> None:
    """Write a network in a format, without any check.

    Args:
        model: The network, in eval mode.
        file: File to write, with the format's ending. OpenVINO's weights go into a second one beside it.
        form: Format, a key of `ENDINGS`.
        size: The image (channels, height, width).
        batch_size: Images per batch.
        dynamic: Dynamic dimensions, a key of `DYNAMIC`.

    Raises:
        ValueError: The network cannot be exported like this.
    """
    dims = DYNAMIC[dynamic]
    # a graph made with a batch of one would be fixed to it
    example = torch.zeros(max(batch_size, 2) if dims else batch_size, *size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch deprecates TorchScript, and parts of itself that it uses here
            if form == 'torchscript':
                buffer = io.BytesIO()  # on a full disk, torch would end the process
                torch.jit.save(torch.jit.script(model), buffer)
                file.write_bytes(buffer.getbuffer())
                return
            program = torch.export.export(model, (example,), dynamic_shapes=(dict.fromkeys(dims, Dim.DYNAMIC),))
            if form == 'onnx':
                graph = torch.onnx.export(
                    program, dynamo=True, input_names=['image'], output_names=['logits'], verbose=False)
                assert graph is not None
                graph.save(str(file))
            elif form == 'openvino':
                _write_openvino(program, file, [-1 if i in dims else n for i, n in enumerate(example.shape)])
            else:
                torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    except Exception as error:  # of any kind: the compilers run the network's own code
        less = f', or leave out dynamic={dynamic!r}' if dims else ''
        raise ValueError(
            f'{model_name(model)} cannot be exported to {form} ({first_line(error)}): choose another format{less}.'
        ) from error


def _write_openvino(program: Any, file: Path, shape: List[int]) -> None:
    openvino = require_extra('openvino', 'export', 'Exporting to openvino')
    graph = openvino.convert_model(program)
    graph.reshape(shape)  # all dimensions are dynamic by default, which is slower
    for name, port in (('image', graph.inputs[0]), ('logits', graph.outputs[0])):
        port.get_tensor().set_names({name})
    openvino.save_model(graph, file, compress_to_fp16=False)


def quantize(source: Path, target: Path, batches: List[torch.Tensor]) -> None:
    """Quantize weights and activations to int8, after training.

    Args:
        source: File of ONNX or OpenVINO.
        target: File to write.
        batches: Batches of images, from which the ranges of activations are taken.

    Raises:
        RuntimeError: A library is missing.
    """
    arrays = [batch.numpy() for batch in batches]
    if source.suffix == ENDINGS['onnx']:
        _quantize_onnx(source, target, arrays)
        return
    nncf = require_extra('nncf', 'export', 'int8 of OpenVINO')
    openvino = require_extra('openvino', 'export', 'int8 of OpenVINO')
    nncf.set_log_level(logging.ERROR)
    graph = nncf.quantize(
        openvino.Core().read_model(source), nncf.Dataset(arrays), preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(arrays), advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE))  # weights of 7 bits, as for ONNX below
    openvino.save_model(graph, target, compress_to_fp16=False)


def _quantize_onnx(source: Path, target: Path, arrays: List[Any]) -> None:
    onnx = require_extra('onnx', 'export', 'int8 of ONNX')
    quantization = require_extra('onnxruntime.quantization', 'export', 'int8 of ONNX')
    feeds = iter([{'image': array} for array in arrays])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> Any:
            return next(feeds, None)

    prepared = source.with_stem('prepared')
    quantization.quant_pre_process(source, prepared, skip_symbolic_shape=True)
    # All operations except norms, which would get one scale for all channels. If only convolutions were int8, what lies
    # between them would cost conversions to float32 and back.
    norms = [node.name for node in onnx.load(prepared).graph.node if node.op_type == 'BatchNormalization']
    quantization.quantize_static(
        prepared, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True, nodes_to_exclude=norms,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        reduce_range=True)  # weights of 7 bits: with 8, sums of two products overflow on CPUs without VNNI


def _open_file(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    if file.suffix == ENDINGS['onnx']:
        onnxruntime = require_extra('onnxruntime', 'export', str(file))
        session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
        return lambda x: torch.from_numpy(session.run(None, {'image': x.numpy()})[0])
    if file.suffix == ENDINGS['openvino']:
        openvino = require_extra('openvino', 'export', str(file))
        # by default, newer CPUs compute in bfloat16
        engine = openvino.compile_model(openvino.Core().read_model(file), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        return lambda x: torch.from_numpy(engine(x.numpy())[0])
    if file.suffix == ENDINGS['aoti']:
        return torch._inductor.aoti_load_package(str(file))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch deprecates TorchScript
        return torch.jit.load(file)


def _random_images(size: Tuple[int, int, int], batch_size: int, dynamic: str) -> List[torch.Tensor]:
    """Batches to compare outputs on; if sides are dynamic, other and odd ones too."""
    channels, height, width = size
    shapes = [(batch_size, height, width)] if dynamic == 'none' else [(1, height, width), (3, height, width)]
    if dynamic == 'all':
        shapes[1] = (3, height + 1, width + 33)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, channels, *sides, generator=generator) for n, *sides in shapes]


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    try:
        with torch.inference_mode():
            logits = model(images)
    except Exception as error:  # of any kind: the network's own code fails on this size
        raise ValueError(
            f'{model_name(model)} does not take images of {images.shape[2]} x {images.shape[3]} pixels '
            f'({first_line(error)}): give another image size, or do not make it dynamic.') from error
    if not isinstance(logits, torch.Tensor):
        raise ValueError(
            f'{model_name(model)} returns a {type(logits).__name__}, expected logits: leave features_only out.')
    return logits


def _compare(expected: List[torch.Tensor], actual: List[torch.Tensor], photos: int) -> Check:
    """Compare outputs batch by batch; photographs are the last batch."""
    largest = max(logits.abs().max().item() for logits in expected)
    difference = max((a - e).abs().max().item() for a, e in zip(actual, expected))
    randoms = sum(map(len, expected)) - photos
    counted = slice(-1, None) if photos else slice(None)
    e, a = (torch.cat(logits[counted]).flatten(1) for logits in (expected, actual))
    signal = (e - e.mean(dim=1, keepdim=True)).norm().item()
    noise = (a - e - (a - e).mean(dim=1, keepdim=True)).norm().item()
    same = int((e.argmax(dim=1) == a.argmax(dim=1)).sum())
    return Check(randoms, photos, difference / largest, noise / signal, same)


def _batches(images: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Batches of one size; copies of the last image fill the last one."""
    for batch in images.split(batch_size):
        yield torch.cat([batch, batch[-1:].expand(batch_size - len(batch), -1, -1, -1)])
