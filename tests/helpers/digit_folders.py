"""scikit-learn's digits as folders of images."""

from digits import load_split


def write_digits(root, num_train, num_val):
    """Writes so many of them, `train/<digit>` and `val/<digit>`; returns the folder."""
    for split, digits, count in zip(('train', 'val'), load_split(), (num_train, num_val)):
        for i, (image, label) in enumerate(zip(digits.images[:count], digits.labels.tolist())):
            (root / split / str(label)).mkdir(parents=True, exist_ok=True)
            image.save(root / split / str(label) / f'{i:04}.png')
    return root
