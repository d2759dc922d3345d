package messages

import (
	"errors"
	"fmt"
)

// InventoryRequest asks a node for its Inventory: its manager does not know what the node was told before.
type InventoryRequest struct {
	Epoch uint64 `json:"epoch"`
}

// Validate accepts every request: there is nothing in it that could be wrong.
func (*InventoryRequest) Validate() error { return nil }

// Inventory is a piece of what a node holds: its Assignments that shall run, by which a manager that has lost its memory learns of
// them. The pieces of one answer are counted by N from 0, and the last one says so.
type Inventory struct {
	N           int          `json:"n"`
	Last        bool         `json:"last"`
	Assignments []Assignment `json:"assignments"`
}

// maxPieces bounds the pieces of an Inventory: no board holds as many instances.
const maxPieces = 1024

// Validate reports all that is wrong with the piece.
func (i *Inventory) Validate() error {
	var p problems
	if i.N < 0 || i.N >= maxPieces {
		p.add(fmt.Errorf("n: %d, want 0 to %d", i.N, maxPieces-1))
	}
	for k := range i.Assignments {
		a := &i.Assignments[k]
		p.add(a.Validate())
		if !a.Run {
			p.add(errors.New("assignments: want those that shall run"))
		}
	}
	return p.err()
}

// DecodeInventory parses one piece of an Inventory. It may be as large as what a manager sends, since one assignment may be.
func DecodeInventory(payload []byte) (Inventory, error) {
	var i Inventory
	err := decode(payload, MaxFromManager, &i)
	return i, err
}

// Inventories cuts what a node holds into pieces that a manager takes.
func Inventories(all []Assignment) []Inventory {
	pieces := []Inventory{{}}
	size := 0
	for _, a := range all {
		last := &pieces[len(pieces)-1]
		more := len(Encode(a))
		if size += more; size > MaxPayload/2 && len(last.Assignments) > 0 {
			pieces = append(pieces, Inventory{N: len(pieces)})
			last, size = &pieces[len(pieces)-1], more
		}
		last.Assignments = append(last.Assignments, a)
	}
	pieces[len(pieces)-1].Last = true
	return pieces
}
