// SPDX-License-Identifier: Apache-2.0
// The static part of the machine's ACPI namespace. Addresses are those of ipc/platform.h. The window above RAM depends
// on the size of memory: its bounds are names in a generated SSDT.
DefinitionBlock ("", "DSDT", 2, "BULKHD", "BULKHEAD", 1)
{
    External (\MMB, IntObj)     // first byte of the PCI memory window above 4 GiB
    External (\MMT, IntObj)     // last byte
    External (\MML, IntObj)     // length

    // Soft off: SLP_TYP 5 in both PM1 control registers.
    Name (\_S5, Package () { 5, 5, 0, 0 })

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))     // PCI Express root
            Name (_CID, EisaId ("PNP0A03"))
            Name (_SEG, 0)
            Name (_BBN, 0)
            Name (_UID, 0)

            Name (CRES, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0, 0, 1)
                IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                        0, 0x0000, 0x0CF7, 0, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                        0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                        0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                        0, 0x100000000, 0x100000FFF, 0, 0x1000,,, HIGH)
            })
            Method (_CRS, 0, Serialized)
            {
                CreateQWordField (CRES, \_SB.PCI0.HIGH._MIN, HMIN)
                CreateQWordField (CRES, \_SB.PCI0.HIGH._MAX, HMAX)
                CreateQWordField (CRES, \_SB.PCI0.HIGH._LEN, HLEN)
                HMIN = \MMB
                HMAX = \MMT
                HLEN = \MML
                Return (CRES)
            }

            // The operating system gets control of what it asks for, but for hot-plug (bits 0 and 1), which is not there.
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, 0, STAT)
                If (Arg0 == ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766"))
                {
                    CreateDWordField (Arg3, 8, CTRL)
                    CTRL &= 0x1C
                    If (Arg1 != 1)
                    {
                        STAT |= 0x08        // unknown revision
                    }
                }
                Else
                {
                    STAT |= 0x04            // unknown UUID
                }
                Return (Arg3)
            }
        }

        Device (ECAM)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xE0000000, 0x00100000)
                IO (Decode16, 0x0600, 0x0600, 1, 0x0C)      // power management
                IO (Decode16, 0x0402, 0x0402, 1, 1)         // debug console
            })
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Name (_STA, 0x0F)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 1, 8)
                IRQNoFlags () { 4 }
            })
        }

        Device (RTC0)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0070, 0x0070, 1, 2)
                IRQNoFlags () { 8 }
            })
        }
    }
}
