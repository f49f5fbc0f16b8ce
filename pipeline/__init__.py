"""What the data is at each step. Data moves one way, in the order of this map: a file imports only from files above it.

loading        importing without a search for garbage meanwhile
errors         how framebank says no: to a command, or to one video
ranks          one training over several processes: what all of them add up, and who writes
ids            a video's name in the bank: its path below the data root, escaped where need be
samples        a small set of real videos whose classes differ in temporal order alone
sampling       which frames: stride, rate, uniform (index arithmetic only)
windows        which sampled frames make one row: a frame, a stack, a clip, or the motion between frames
image_folders  the images of one folder, in order, as RGB pixels
stated_length  how long a container says its video is: truncated, or merely miscounted?
wholeness      is a video that was decoded without an error whole, or does its end lack?
frames         one video or folder of images -> RGB frames with real timestamps; the only file that knows a decoder
planes         frames as decoders store them, YUV 4:2:0, made RGB on a device
split_lists    the train/test lists of UCF101 and HMDB51 -> split columns
videos         folder, manifest, file or list -> table of videos: id, path, label, split, group
gathering      what is named on a command line (files, folders, patterns, standard input) -> one table of videos
headers        what the headers of many videos say, read in threads
sources        what a source file was when it was banked: has it changed since?
checkpoints    a weights file -> state dict, without executing anything
downloads      weights published at an address -> their file, downloaded once and checked
preprocessing  a frame -> the network's input, as its weights' own transforms make it of an image
blueprints     what is known of a network before it is built, wherever it comes from
torchvision_networks  torchvision's classification models, of images and of videos
video_nets     the networks that torchvision lacks: R2D, f-R2D, rMC3, VGG-M, slow fusion
timm_networks  timm's image networks: their configuration, their weights in the hub's cache, their pre-logits
own_entries    a user's function that makes a network, run where it was typed and nowhere else
networks       the table of these origins: which weights, preprocessing and windows go with a name
augmentation   random changes of a clip, the same for all of its frames
flow           the motion between two prepared frames, as pixels
views          several crops of a video, banked side by side
timing         where the time of a run goes: decoding, preparing, forward, writing, waiting
rows           the rows of a video before the network: frames decoded, prepared and put together by windows
first_convolution  an image network's first convolution made to see stacks of frames or of motion
inflation      an image network -> a network of clips, with its weights (I3D)
tracing        a model -> its graph with named nodes, or the model in one piece
backbone       a name -> frozen CNN cut at a layer, its preprocessing and feature shape
blocks         the pieces of a backbone that a person would name, in order, and how deep they lie
unfreezing     which pieces of a backbone train, from which epoch on, at which learning rate; the rest is frozen
halves         a backbone -> the part before what trains, and the part from there on
folding        frozen BatchNorm folded into the convolution before it
prepacking     convolutions laid out for the CPU beforehand, with what follows them fused
compiling      the network compiled for its one batch shape, where that pays for itself
allocator      the C library's allocator told to keep what it has
encoder        full batches of prepared frames -> embeddings, on any device and precision
batch_probe    the batch size of a GPU, by a short probe
features       one HDF5 file of banked videos: schema, writer, reader; the only file that imports h5py
other_hdf      HDF5 files of features that other programs wrote, and those that they read
imported       files of arrays that other programs wrote -> rows of one video, with their times
checking       is a banked video what the catalog says of it?
lock           one holder at a time, by a file with a heartbeat
bank           the bank: one file and the sealed parts beside it, read as one
blockwise      more rows than memory holds: one dask array, read block by block
feature_statistics  mean, deviation, range and zeros of each feature over a whole bank
sealing        finished videos -> sealed parts
packing        parts -> one self-contained bank file; merge and remove
engine         frames of many videos -> full batches -> embeddings, overlapped
resuming       which videos still need banking, and whether the bank was made the same way
extraction     a table of videos -> sealed parts: what making a bank and predicting have in common
cluster        a Dask cluster: worker processes started here, or one that is joined
agreement      what every worker has to have in common with the command, found out before work begins
pieces         which videos go to a worker together, and how they are split
worker         what a worker process does: loads the network once, embeds pieces, seals its own parts
worker_start   what a worker process of our own loads as it starts
spreading      pieces over the workers of a cluster, whatever becomes of the workers
prefix_bank    what the frozen part of a network gives for every frame, banked at the boundary

writing        files written whole or not at all: JSON, CSV
tables         CSV files that people bring, read as text with their lines
frame_labels   files of segments or labels of frames, in the formats of the field -> spans
segments       spans <-> labels of the banked frames, by their real times
import_sources  what there is to import: feature files or HDF5 -> table of videos; which axis is time
importing      a table of imported features -> sealed parts
exporting      what every export has in common: what cannot be one, names of files, files never overwritten
exporting_actionformer  a bank -> features, annotations and settings for ActionFormer, and back by import
exporting_hdf  a bank -> one HDF5 file of /ID/c3d_features
exporting_tables  a bank -> Parquet of pooled features, CSV of the catalog
targets        what is to be predicted: one target per video or per frame
exporting_ms_tcn  a bank and segments -> features, labels of rows and bundles for MS-TCN
splits         which videos train, which choose and which are scored
selection      which rows of a banked video a head sees, in training and in testing
resampling     rows of one bank at the times of another: the nearest, or between two
joined_banks   one bank or several read side by side
joined_times   when the rows of banks that are read together are shown
transfers      what a GPU is sent without waiting for it
sequences      the videos of a bank in memory or streamed, as packed batches
video_frames   the frames of banked videos, decoded when they are asked for, as sequences
layout         where each video's rows lie in a packed sequence
inputs         the rows that a head reads: less their mean, beside their changes
standardisation  what centres, scales and projects them: statistics of the training videos
variational    dropout masks that are the same at every step of a sequence
recurrence     the LSTM or GRU over packed rows, its dropped weights and its first weights
pooling        one vector for a whole sequence, of its true steps alone
heads          packed feature rows -> a prediction per video or per step
video_model    backbone and head as one module: packed frames -> what the head makes of them
long_sequences  one long video through a head, in bounded memory
objectives     targets aligned with batches, the loss on them, outputs -> predictions
scoring        a head -> its predictions of videos, long ones in chunks, crops averaged
joining        was anything lost in joining backbone and head? beside the head on its bank
bootstrap      how sure a score is: intervals that resample whole groups
segment_metrics  edit score and segmental F1
metrics        scores of predictions, by the field's names
optimisation   how a head is trained: optimiser, learning rate over time, clipping
learning       what is learnt from a bank, and how, as a run keeps it
epochs         one epoch laid out: which rows each step of the optimiser sees
training_state  a training's state on disk, whole or not at all
fitting        head, sequences, targets -> the best epoch's weights
calibration    probabilities that mean what they say: a temperature, a threshold per label
bundles        heads and all that turns their outputs into predictions, as safetensors and JSON
predictions    predictions as tables: per video and per frame
plain_head     a head on one whole sequence, of plain tensors, as it leaves Python
plain_models   backbone and bundle as modules of plain tensors
onnx_cells     LSTM and GRU as ONNX has them
exported_models  modules as files that run without this project, and such files run
alike          new videos banked exactly as the head's bank was
material       what heads are trained from: sequences, targets, classes, groups
folds          the folds of a run, however they were asked for
runs           the folder of a run
training       one fold -> a trained, calibrated bundle
finetuning     one fold, end to end: a head and its backbone -> both trained together
baselines      what does without order: majority, last frame, pooled features
results        held-out predictions -> scores, intervals, differences, tables
held_out       what heads and baselines say of the test part of a fold
recorded       what a finished run wrote down, read back: settings, results, folds, held-out videos
rescoring      a finished run's heads once more, on its own or other banks
starting_point  what fine-tuning starts from: a finished run, or a bank and new heads
export_check   exported models beside what they were made of
recipes        named systems as TOML files -> the options of the commands
thumbnails     frames of banked videos as small pictures within a page
bank_survey    one pass over a bank's features: each video as one vector, its change over time, copies
bank_map       videos as points in a plane, and which of them are alike: PCA, t-SNE, nearest neighbours
report_curves  ROC, precision over recall, reliability and learning curves as charts
report_errors  where a run fails: the videos of each cell, and its surest mistakes
report_courses  when in a video the decision falls: scores over growing beginnings of it
report_timelines  targets and predictions over the time of one video
report_cards   the videos that a report shows in full
explore_data   a bank and what a pass over it found -> what its page says, as plain data
report_data    a finished run -> what its report says, as plain data
pages          a template and plain data -> one HTML file that needs nothing else
figures        confusion matrix, learning curves, scatter and timelines as PNG
prediction_timelines  what a head says over the time of new videos, beneath pictures of them
"""
