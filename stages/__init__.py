"""One file per command. Stages meet through files in data/, never by importing each other.

stage     make target    reads                        writes
extract   make extract   videos                       a bank (data/<name>.h5)
describe  make describe  a bank                       a description on the terminal, or CSV
keep                     banks                        one packed or merged bank, or one without some videos
demo      make demo      nothing                      data/samples/, data/samples.h5

cli       the command `framebank`: options in, one call of a stage, exit status out; the only file that imports click
console   what the person at the terminal sees while a stage runs
summary   what extract says before it begins and at its end
"""
