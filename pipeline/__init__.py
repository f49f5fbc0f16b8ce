"""What the data is at each step. Data moves one way, in the order of this map:

errors         how framebank says no: to a command, or to one video
samples        a small set of real videos whose classes differ in temporal order alone
ids            a video's name in the bank: its path below the data root, escaped where need be
videos         folder, manifest or single file -> table of videos: id, path, label, split, group; probing
split_lists    the train/test lists of UCF101 and HMDB51 -> split columns
sources        what a source file was when it was banked: has it changed since?
sampling       which frames: stride, rate, uniform (index arithmetic only)
image_folders  the images of one folder, in order, as RGB pixels
stated_length  how long a container says its video is: truncated, or merely miscounted?
frames         one video or folder of images -> RGB frames with real timestamps; the only file that knows a decoder
checkpoints    a weights file -> state dict, without executing anything
preprocessing  a frame -> the network's input, bit for bit as its weights' own transforms
backbone       a name -> frozen CNN cut at a layer, its preprocessing and feature shape
encoder        full batches of prepared frames -> embeddings, on any device and precision
engine         frames of many videos -> full batches -> embeddings, overlapped
features       one HDF5 file of banked videos: schema, writer, reader; the only file that imports h5py
lock           one holder at a time, by a file with a heartbeat
bank           the bank: one file and the sealed parts beside it, read as one
sealing        finished videos -> sealed parts
packing        parts -> one self-contained bank file; merge and remove
resuming       which videos still need banking, and whether the bank was made the same way
"""
