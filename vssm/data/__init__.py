"""Images and their labels, torchvision-shaped: data sets, preprocessing, augmentation, the order of samples."""
