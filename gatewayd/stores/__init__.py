"""What admission remembers: IAdmission by medium."""
