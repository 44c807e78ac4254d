"""What people say of answers: the files that hold it, the conversations in which it arises, the rows that are learnt from."""
