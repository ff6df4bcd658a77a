"""The measuring instrument: studies that compare trainers through nnU-Net's command line.

A study is a small JSON file (:mod:`study.description`). ``run_study.py`` makes its data sets (:mod:`study.data`), trains and
predicts with every arm (:mod:`study.runs`), measures the predictions (:mod:`study.metrics`) and reports
(:mod:`study.report`). What exists already is not done again, so a study that was killed continues.
"""
