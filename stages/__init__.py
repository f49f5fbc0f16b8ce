"""One file per command. Stages meet through files in data/, never by importing each other.

stage       make target      reads                        writes
extract     make extract     videos                       a bank (data/<name>.h5)
import_features              files of features            a bank
describe    make describe    a bank                       a description on the terminal, CSV or JSON
explore                      a bank                       an HTML page (beside the bank)
export                       a bank, segments             files as other programs read them
keep                         banks                        one packed or merged bank, or one without some videos
train_head  make train-head  a bank, or several           a run folder (data/<name>-head)
finetune    make finetune    videos, a run                a run folder (data/<name>-finetuned)
evaluate                     a run, or a run and banks    scores on the terminal, or JSON
predict                      a run and videos             labels on the terminal, CSV, JSON, segments, timelines
classify                     videos                       the network's own labels on the terminal, CSV, JSON
export_model                 a run, videos                files that predict without framebank
compare                      runs                         a table on the terminal, CSV or JSON
report                       runs                         an HTML page (RUN/report.html)
bench_extract   make bench   videos                       figures on the terminal, or JSON
bench_bank                   nothing                      figures on the terminal, or JSON
bench_heads                  a bank                       figures on the terminal, or JSON
bench_finetune               videos, a run                figures on the terminal, or JSON
demo        make demo        nothing                      data/samples/, data/samples.h5, both its runs, pages of them

cli             the command `framebank`: one call of a stage per command, exit status out
options         what the commands can be told: what they share, and extract
head_options    what train-head can be told
finetune_options  what finetune can be told
predict_options  what predict can be told, with a run and without
recipe_options  --recipe: what fills the options of the commands
show_recipes    what `framebank recipes` says
calls           one call of the command: its exit status, its mistakes in a line, its interruption
console         what the person at the terminal sees while a stage runs
progress        how far something is: a bar, a line now and then, or events
events          --log-json: what happens, as JSON Lines
described       what describe finds, as plain data
summary         what extract says before it begins and at its end
banking         what extract tells of each video as it is banked, in events
workers         what extract does where the workers of a cluster do the work
training_run    what train-head and finetune have in common: training, scoring, the run folder
training_words  what they say, before they begin and at their end
export_model_options  what export-model can be told
export_model_words  what an exported model says of itself
comparison      runs side by side: what compare and report say of them
report_words    what a report says in words, around its numbers
explore_words   what the page of a bank says in words
timelines       predict --timeline: as a picture, a page or JSON
finetune_words  what finetune says besides
exchange_commands  what import and export can be told
bench_commands  what `framebank bench` can be told
bench_parts     the parts of an extraction by themselves, and the whole, timed in lanes
bench_processes  commands in fresh processes: their first frame, their end, their memory
bench_naive     the naive loop on the videos of a bench, held against the bank
naive_loop      the loop that people write by hand, in a process of its own
bench_words     what `framebank bench extract` says
machine         what benches say of the machine and the versions
"""
