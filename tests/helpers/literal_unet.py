"""The table of layers of the U-Net paper, written out; convolutions padded and followed by batch norm."""

import torch
from torch import nn


def conv(in_chs, out_chs):
    return nn.Sequential(nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=False), nn.BatchNorm2d(out_chs), nn.ReLU())


class LiteralUNet(nn.Module):
    def __init__(self, in_chans, num_classes, w=64):
        super().__init__()
        self.conv11, self.conv12 = conv(in_chans, w), conv(w, w)
        self.conv21, self.conv22 = conv(w, 2 * w), conv(2 * w, 2 * w)
        self.conv31, self.conv32 = conv(2 * w, 4 * w), conv(4 * w, 4 * w)
        self.conv41, self.conv42 = conv(4 * w, 8 * w), conv(8 * w, 8 * w)
        self.conv51, self.conv52 = conv(8 * w, 16 * w), conv(16 * w, 16 * w)
        self.up6 = nn.ConvTranspose2d(16 * w, 8 * w, 2, 2)
        self.up7 = nn.ConvTranspose2d(8 * w, 4 * w, 2, 2)
        self.up8 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2)
        self.up9 = nn.ConvTranspose2d(2 * w, w, 2, 2)
        self.conv61, self.conv62 = conv(16 * w, 8 * w), conv(8 * w, 8 * w)
        self.conv71, self.conv72 = conv(8 * w, 4 * w), conv(4 * w, 4 * w)
        self.conv81, self.conv82 = conv(4 * w, 2 * w), conv(2 * w, 2 * w)
        self.conv91, self.conv92 = conv(2 * w, w), conv(w, w)
        self.out = nn.Conv2d(w, num_classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x, after=lambda level, x: x):
        """`after` may change the output of a level of the encoder."""
        x1 = after(0, self.conv12(self.conv11(x)))
        x2 = after(1, self.conv22(self.conv21(self.pool(x1))))
        x3 = after(2, self.conv32(self.conv31(self.pool(x2))))
        x4 = after(3, self.conv42(self.conv41(self.pool(x3))))
        x5 = after(4, self.conv52(self.conv51(self.pool(x4))))
        x = self.conv62(self.conv61(torch.cat([x4, self.up6(x5)], 1)))
        x = self.conv72(self.conv71(torch.cat([x3, self.up7(x)], 1)))
        x = self.conv82(self.conv81(torch.cat([x2, self.up8(x)], 1)))
        x = self.conv92(self.conv91(torch.cat([x1, self.up9(x)], 1)))
        return self.out(x)
