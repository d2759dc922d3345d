package schedule

import "slices"

// order is a sorted list of nodes in short pieces: a placement moves one node past thousands of others that are as loaded, and to move them
// in one long list took a third of all the time that a placement takes.
type order struct {
	pieces [][]*entry // none is empty
}

// pieceMost is how long a piece gets before it is cut in two: a compromise between the length of a piece and their number.
const pieceMost = 256

// find returns the piece and the place in it where e is or belongs.
func (o *order) find(e *entry) (piece, at int) {
	piece, _ = slices.BinarySearchFunc(o.pieces, e, func(p []*entry, e *entry) int { return before(p[len(p)-1], e) })
	if piece == len(o.pieces) {
		piece = max(0, piece-1) // behind the last one
	}
	if len(o.pieces) > 0 {
		at, _ = slices.BinarySearchFunc(o.pieces[piece], e, before)
	}
	return piece, at
}

// insert puts e where it belongs.
func (o *order) insert(e *entry) {
	if len(o.pieces) == 0 {
		o.pieces = [][]*entry{{e}}
		return
	}
	i, at := o.find(e)
	p := slices.Insert(o.pieces[i], at, e)
	o.pieces[i] = p
	if len(p) > pieceMost {
		half := len(p) / 2
		o.pieces[i] = slices.Clip(p[:half])
		o.pieces = slices.Insert(o.pieces, i+1, append(make([]*entry, 0, pieceMost+1), p[half:]...))
	}
}

// remove takes e out, which is as it was when it was put in.
func (o *order) remove(e *entry) {
	i, at := o.find(e)
	o.pieces[i] = slices.Delete(o.pieces[i], at, at+1)
	if len(o.pieces[i]) == 0 {
		o.pieces = slices.Delete(o.pieces, i, i+1)
	}
}
