//! ClientHellos byte by byte, for those that no client would send.

/// A hello with these extensions, in one record.
pub(crate) fn of(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(vector(extensions));
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    record(&[&[1], &length[1..], &body].concat())
}

/// The extension with this server name.
pub(crate) fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vector(&[&[0], &vector(name)[..]].concat()))
}

/// The extension with a hello inside.
pub(crate) fn encrypted() -> Vec<u8> {
    extension(0xFE0D, &[0; 60])
}

pub(crate) fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(data)].concat()
}

/// What is in the records of `hello`, in records of this size.
pub(crate) fn in_records(mut hello: &[u8], size: usize) -> Vec<u8> {
    let mut message = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = hello {
        let (fragment, behind) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend(fragment);
        hello = behind;
    }
    message.chunks(size).flat_map(record).collect()
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1], &vector(fragment)[..]].concat()
}

fn vector(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes(), bytes].concat()
}
