"""A text of about 500 tokens, written for these tests, over which forms of weights are compared."""

TEXT = """
The harbour master kept two ledgers. In the first he wrote the ships that had been expected, with the
hour at which each of them was due and the cargo that its owner had promised; in the second he wrote
the ships that came. For thirty years nobody had asked to see both at once, and so nobody had noticed
how little they agreed. A vessel announced for Monday with salt arrived on Thursday with timber, or
arrived on Monday with half the salt, or did not arrive, and was found in the spring on the rocks
behind the lighthouse, where children collected its copper nails. When the new clerk was hired, a
young woman from the mountains who had never seen the sea, she was told to copy the two books into a
third one, so that the town could finally learn how many berths it needed. She worked through the
winter. By the light of a single lamp she added up the tons that had been promised and the tons that
had been weighed, and for every week she noted the greatest number of ships that had lain in the
harbour at the same time. It was this last column that surprised her. On an average day there were
eleven ships, and the council had built twelve berths, and believed itself careful. But the average
day was a day on which nothing happened. After each storm, when everything that had waited behind the
cape came in together, there had been nineteen, then twenty-two, and once, in the year of the great
frost, thirty-one ships in the water, tied to one another like cattle, while their captains shouted
and the grain in their holds grew wet. "You have measured the wrong thing," she said to the council in
March. "You asked how much comes in during a year, and divided it by the number of days. Nobody has
ever drowned in an average." The mayor answered that berths were expensive, and that a storm came only
five or six times a year. The clerk opened the third book and read to them what each of those days had
cost: so many sacks of wheat, so many broken hulls, so many sailors who went to the next town and did
not return. Then she read what four more berths would cost, and what eight would cost, and at which
number the line turned upwards again, because stone must be paid for even when no ship lies beside it.
It took them until the summer to decide. They built six, and a wall behind the cape, so that the ships
could wait for one another in calm water; and from that year on the harbour master kept a single book.
"""
