"""UNQ (Morozov and Babenko, ICCV 2019), a neural baseline."""
