"""The page as a Hugging Face Space; on your own machine, `mlfm-zoo app` starts it."""

from mlfm_zoo.app import launch

if __name__ == '__main__':
    launch()
