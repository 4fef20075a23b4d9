"""The report on a run: one offline HTML file (`html.write_report`) and the model cards (`cards`)."""
