"""Train, evaluate and use a segmentation network: `mlfm-zoo segment` as a script.

    python examples/segment.py train CamVid --output run --labels camvid --model fcn8s --encoder mlfm_resnet34
    torchrun --nproc-per-node 4 examples/segment.py train CamVid --output run     # the same on four devices
    python examples/segment.py evaluate run/best CamVid --split test --flip --pictures pictures
    python examples/segment.py predict run/best photo.jpg --output masks

The training loop is mlfm_zoo/segmentation/training.py. The network alone, in a loop of one's own:

    model = mlfm_zoo.segmentation.create_model('fcn8s', 'mlfm_resnet34', num_classes=11, aux=True)
    loss = mlfm_zoo.segmentation.segmentation_loss(model(images), labels)
"""

import sys

from mlfm_zoo_cli import main

if __name__ == '__main__':
    sys.exit(main(['segment', *sys.argv[1:]]))
