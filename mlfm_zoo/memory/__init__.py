"""The low-frequency memory: its unit, all units of a network, and attaching them."""

from .attach import MemorySupport, attach_memory, calibrate_memory, memory_family, supports_memory
from .bands import image_bands, low_band
from .gates import Gate
from .network import LowFrequencyMemory, MemorySite, PassThrough
from .options import MemoryOptions
from .unit import LowFrequencyMemoryUnit

__all__ = [
    'Gate', 'LowFrequencyMemory', 'LowFrequencyMemoryUnit', 'MemoryOptions', 'MemorySite',
    'MemorySupport', 'PassThrough', 'attach_memory', 'calibrate_memory', 'image_bands', 'low_band', 'memory_family',
    'supports_memory',
]
