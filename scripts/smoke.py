"""A first use of the installed package, where nothing may reach the network.

    cd EMPTY_FOLDER && PYTHON -I smoke.py VERSION

Every attempt to look a host up or to connect to one ends it, from before the import to the end. Prints what it did.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any, Tuple

NETWORK = ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto', 'urllib.Request')


def refuse_network(event: str, args: Tuple[Any, ...]) -> None:
    """Audit hook that stops the script before any event of `NETWORK` happens."""
    if event in NETWORK:
        raise SystemExit(f'Something reached for the network, {event} {args[1:]}, expected that nothing does: find it.')


def check(holds: bool, what: str) -> None:
    """Say what holds, and end where it does not."""
    if not holds:
        raise SystemExit(f'It does not hold in {sys.prefix} that {what}: mend it before a release.')
    print(f'  {what}', flush=True)


def main() -> None:
    sys.addaudithook(refuse_network)
    import timm

    others = set(timm.list_models())
    import mlfm_zoo
    check(mlfm_zoo.__version__ == sys.argv[1], f'the version is {sys.argv[1]}')
    check(Path(mlfm_zoo.__file__).is_relative_to(sys.prefix), 'the package is the installed one, not a checkout')
    names = timm.list_models('mlfm_*', exclude_filters='mlfm_filtered')
    check(len(names) == 34 and others < {*timm.list_models()}, '34 networks with memory are there')

    import torch
    from safetensors.torch import load_file

    from mlfm_zoo_cli import main as main_of_package

    model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        answers = model(images)
        fused = model.fuse()(images)
    check(tuple(answers.shape) == (2, 10), 'the embedded network loads its weights and answers')
    check(bool((answers - fused).abs().max() <= 1e-5 * answers.abs().max()), 'fused, it answers the same')
    plain = timm.create_model('mlfm_resnet18', num_classes=1000, memory=False).eval()
    trunk = timm.create_model('resnet18').eval()
    trunk.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        check(torch.equal(plain(images), trunk(images)), 'without memory a network is timm\'s own')
    with tempfile.TemporaryDirectory() as folder:
        saved = timm.create_model('test_mlfm_resnet', pretrained=True)
        timm.models.save_for_hf(saved, folder, safe_serialization=True)
        again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        check(bool(load_file(Path(folder) / 'model.safetensors')), 'a network is saved as the Hub wants it')
        with torch.inference_mode():
            check(torch.equal(again(images), answers), 'and loaded from there')
    for arguments in (['list'], ['info', 'mlfm_resnet50']):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = main_of_package(arguments)
        check(code == 0 and bool(printed.getvalue()), f'mlfm-zoo {" ".join(arguments)} works')


if __name__ == '__main__':
    main()
